"""The configuration of a run: what `crosscoders run CONFIG.toml` reads and `run.json` records."""

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from crosscoders._typing import typed
from crosscoders.activation_fns import ActivationFn, BatchTopK, JumpReLU, ReLU, TopK, activation_fn_from_dict
from crosscoders.losses import (
    AuxK,
    DecoderNormL1,
    DifferenceReconstruction,
    JumpReLUL0,
    LossTerm,
    PreActivation,
    Reconstruction,
    SharedDecoderNormL1,
    TanhSparsity,
)
from crosscoders.models.id_policy import IdPolicy
from crosscoders.pipeline.model_config import ModelConfig, check_device_name
from crosscoders.pipeline.presets import with_preset
from crosscoders.pipeline.system_config import SystemConfig
from crosscoders.training import TrainerConfig

ALL_TEXT = "all"  # what tables call the whole held-out text
LOSS_TERMS: dict[str, type[LossTerm]] = {
    term.name: term
    for term in (
        Reconstruction,
        DifferenceReconstruction,
        DecoderNormL1,
        SharedDecoderNormL1,
        AuxK,
        JumpReLUL0,
        TanhSparsity,
        PreActivation,
    )
}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which tokens are read and how they are served.

    Args:
        n_tokens: Tokens of the text to train on, served once per epoch; None for all that is not held out.
        held_out_tokens: Tokens kept out of training, on which everything is measured.
        sequence_length: Tokens per row of packed documents.
        skip_positions: Leading positions of each row to leave out (attention sinks sit there).
        max_norm_multiple: Train on no token whose activation norm exceeds this multiple of the median; None
            for none.
        epochs: How often the training tokens are served.
        batch_tokens: Tokens per training step.
        sequences_per_harvest: Rows that go through the models together.
        buffer_bytes: Memory for shuffling activations.
        splice_tokens: Held-out tokens per kind of text on which reconstructions are spliced into the models;
            0 leaves splicing out, and then each model is read from its files only up to the hook.
        id_policy: What happens to token ids whose meaning differs between the two tokenizers: "drop", "mask"
            or rules; None lets such ids raise.
        tokenizer: "base" or "distilled": whose tokenizer makes the ids; None for the first model's that has
            one. Only R1's own reads `<think>` as one token.

    Raises:
        ValueError: A count out of range, or a `tokenizer` that names no model.
    """

    n_tokens: int | None = None
    held_out_tokens: int = 200_000
    sequence_length: int = 256
    skip_positions: int = 0
    max_norm_multiple: float | None = None
    epochs: int = 1
    batch_tokens: int = 2048
    sequences_per_harvest: int = 32
    buffer_bytes: int = 1 << 28
    splice_tokens: int = 20_000
    id_policy: IdPolicy | Literal["drop", "mask"] | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        for name in (
            "held_out_tokens",
            "sequence_length",
            "epochs",
            "batch_tokens",
            "sequences_per_harvest",
            "buffer_bytes",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"DataConfig: {name} must be at least 1, got {getattr(self, name)}.")
        if self.n_tokens is not None and self.n_tokens < 1:
            raise ValueError(f"DataConfig: n_tokens must be at least 1 or left out, got {self.n_tokens}.")
        if self.tokenizer not in (None, "base", "distilled"):
            raise ValueError(
                f"DataConfig: tokenizer must be 'base' or 'distilled' or left out, got {self.tokenizer!r}."
            )
        for name in ("skip_positions", "splice_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"DataConfig: {name} must not be negative, got {getattr(self, name)}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain form of the fields."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if isinstance(self.id_policy, IdPolicy):
            plain["id_policy"] = self.id_policy.to_dict()["rules"]
        return plain


@dataclass(frozen=True, kw_only=True)
class TextPart:
    """One file of a mix of texts.

    Args:
        path: A file of documents, or the id of a data set, as `stream_texts` reads them.
        weight: Share of the tokens that come from it, relative to the other parts' weights.
        name: What tables call this kind of text; the file's stem if empty.
        format: "text", "openthoughts" or "chat"; "auto" tells them apart by their keys.

    Raises:
        ValueError: An unknown format, a weight that is not finite and positive, or the name "all".
    """

    path: str
    weight: float = 1.0
    name: str = ""
    format: Literal["auto", "text", "openthoughts", "chat"] = "auto"

    def __post_init__(self) -> None:
        formats = ("auto", "text", "openthoughts", "chat")
        if self.format not in formats:
            raise ValueError(
                f"text part {self.path!r}: format must be one of {formats}, got {self.format!r}."
            )
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(
                f"text part {self.path!r}: weight must be finite and positive, got {self.weight}."
            )
        if not self.name:
            object.__setattr__(self, "name", Path(self.path).stem)
        if self.name == ALL_TEXT:
            raise ValueError(
                f"text part {self.path!r}: the name {ALL_TEXT!r} stands for all parts together; give name=."
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: two models in, a crosscoder and a table of latents out.

    Args:
        base: First model (NRN 0): folder or Hub id, a label if modules are passed, or a `ModelConfig`.
        distilled: Second model (NRN 1), likewise.
        text: `.txt` or `.jsonl` file of documents, a mix of such files, or a label if token ids are passed.
        out: Run folder to create.
        n_latents: Dictionary size.
        hook_name: TransformerLens hook, or "half" for half depth, in both models.
        activation_fn: How latents are chosen.
        objective: Loss terms; empty for the field's choice for this activation function.
        seed: Everything random derives from it.
        device: Torch device of models and crosscoder.
        data: Tokens.
        training: Optimizer and schedule.
        system: Disk, overlap, ranks and loggers, which change nothing that is learned.

    Raises:
        ValueError: `n_latents` below 1, or a text, hook or objective that cannot be.
    """

    base: str | ModelConfig
    distilled: str | ModelConfig
    text: str | tuple[TextPart, ...]
    out: str
    n_latents: int
    hook_name: str = "half"
    activation_fn: ActivationFn = field(default_factory=lambda: BatchTopK(k=100))
    objective: tuple[LossTerm, ...] = ()
    seed: int = 0
    device: str = "cpu"
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainerConfig = field(default_factory=TrainerConfig)
    system: SystemConfig = field(default_factory=SystemConfig)

    def __post_init__(self) -> None:
        if self.n_latents < 1:
            raise ValueError(f"RunConfig: n_latents must be at least 1, got {self.n_latents}.")
        self.activation_fn.build(self.n_latents)  # refuses a k that exceeds n_latents
        check_device_name(self.device, where="RunConfig")

    def models(self) -> dict[str, ModelConfig]:
        """Both models by source name, a bare path as a `ModelConfig` with its defaults."""
        given = {"base": self.base, "distilled": self.distilled}
        return {n: ModelConfig(path=model) if isinstance(model, str) else model for n, model in given.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain form of the run config; `from_dict` inverts it."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("base", "distilled"):
            if isinstance(plain[name], ModelConfig):
                plain[name] = dataclasses.asdict(plain[name])
        if not isinstance(self.text, str):
            plain["text"] = [dataclasses.asdict(part) for part in self.text]
        plain["activation_fn"] = self.activation_fn.to_dict()
        plain["objective"] = [{"term": term.name, **dataclasses.asdict(term)} for term in self.objective]
        plain["data"] = self.data.to_dict()
        plain["training"] = dataclasses.asdict(self.training)
        plain["system"] = dataclasses.asdict(self.system)
        return plain

    @classmethod
    @typed
    def from_dict(cls, data: Mapping[str, Any]) -> "RunConfig":
        """Build a config from plain values.

        Args:
            data: Fields by name; `activation_fn`, `objective`, `data`, `training` and `system` as tables,
                `text` as a path or a list of tables, `base` and `distilled` as paths or tables,
                `data.id_policy` as a word or a list of rules. `preset` names values that apply where `data`
                is silent.

        Raises:
            ValueError: An unknown key or a missing one, here or in a section; the message lists the known
                keys.
        """
        for name in ("data", "training", "system"):
            if not isinstance(data.get(name, {}), Mapping):
                raise ValueError(f"[{name}] must be a table, got {data[name]!r}.")
        values = with_preset(data)
        if isinstance(values.get("text"), list | tuple):
            values["text"] = tuple(
                build_config(TextPart, part, where=f"text part {at}")
                for at, part in enumerate(values["text"])
            )
        if "activation_fn" in values:
            values["activation_fn"] = activation_fn_from_dict(values["activation_fn"], fill_defaults=True)
        values["objective"] = tuple(_loss_term(term) for term in values.get("objective", ()))
        values["data"] = build_config(DataConfig, _with_rules(values.get("data", {})), where="[data]")
        values["training"] = build_config(TrainerConfig, values.get("training", {}), where="[training]")
        values["system"] = build_config(SystemConfig, values.get("system", {}), where="[system]")
        return build_config(cls, values, where="run config")

    @classmethod
    @typed
    def from_toml(cls, path: str | Path) -> "RunConfig":
        """Read a TOML file; relative paths in it are relative to the current folder.

        Args:
            path: The file.

        Raises:
            ValueError: Not TOML, or as for `from_dict`; the message names the file.
        """
        try:
            return cls.from_dict(tomllib.loads(Path(path).read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, ValueError, TypeError) as err:
            raise ValueError(f"{path}: {err}") from err


@typed
def build_config(cls: type, values: Mapping[str, Any], *, where: str) -> Any:
    """Build a dataclass from a mapping.

    Args:
        cls: The dataclass.
        values: Fields by name; lists become tuples.
        where: What the message calls the mapping.

    Raises:
        ValueError: An unknown key or a missing one; the message lists the known keys.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    needed = {
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing = sorted(needed - set(values))
    if unknown or missing:
        raise ValueError(
            f"{where}: unknown keys {unknown}, missing keys {missing}; the keys are {sorted(fields)}."
        )
    hints = get_type_hints(cls)
    plain = {name: _checked_plain(f"{where}: {name}", value, hints[name]) for name, value in values.items()}
    return cls(**plain)


def _checked_plain(where: str, value: Any, hint: Any) -> Any:
    """A value as its field wants it: lists as tuples, tables as dataclasses, whole numbers as floats.

    Numbers, text and flags are checked, elements of tuples included; other types are left to the dataclass.
    """
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if isinstance(value, Mapping):
        nested = [kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
        return build_config(nested[0], value, where=where) if nested else value
    tuples = [kind for kind in kinds if get_origin(kind) is tuple]
    if isinstance(value, list | tuple) and tuples:
        inner = get_args(tuples[0])
        hints = [inner[0]] * len(value) if inner[1:] == (...,) else list(inner)
        if len(hints) != len(value):
            raise ValueError(f"{where} must have {len(hints)} entries, got {value!r}.")
        return tuple(_checked_plain(f"{where}[{at}]", v, h) for at, (v, h) in enumerate(zip(value, hints)))
    accepted = {kind for kind in kinds if kind in (int, float, str, bool, type(None))}
    if type(value) is int and float in accepted and int not in accepted:
        return float(value)
    if type(value) in accepted or (not accepted and not tuples):
        return value
    if len(accepted) + len(tuples) < len(kinds) and not isinstance(value, int | float | str | list):
        return value
    names = [kind.__name__ for kind in accepted] + ["a list"] * bool(tuples)
    raise ValueError(f"{where} must be {' or '.join(sorted(names))}, got {value!r} ({type(value).__name__}).")


def _with_rules(data: Mapping[str, Any]) -> dict[str, Any]:
    """The section [data] with a list of rules made into an `IdPolicy`."""
    found = data.get("id_policy")
    if isinstance(found, list | tuple):
        return {**data, "id_policy": IdPolicy.from_dict({"rules": found})}
    if found not in (None, "drop", "mask"):
        raise ValueError(f"[data]: id_policy must be 'drop', 'mask' or a list of rules, got {found!r}.")
    return dict(data)


def _loss_term(data: Mapping[str, Any]) -> LossTerm:
    values = dict(data)
    name = values.pop("term", None)
    if name not in LOSS_TERMS:
        raise ValueError(f"objective: 'term' must be one of {sorted(LOSS_TERMS)}, got {name!r}.")
    return build_config(LOSS_TERMS[name], values, where=f"objective term {name!r}")


@typed
def default_objective(activation_fn: ActivationFn) -> Sequence[LossTerm]:
    """The field's objective for an activation function.

    TopK and BatchTopK: reconstruction and AuxK (Gao et al. 2024). ReLU: reconstruction and the decoder-norm
    L1 of Baek and Tegmark's recipe (weight 2 after a warm-up over 5% of the run). JumpReLU: reconstruction,
    the tanh penalty and the pre-activation loss (Anthropic, January 2025).

    Args:
        activation_fn: The activation function to train.

    Raises:
        ValueError: An activation function of your own; say the objective then.
    """
    if isinstance(activation_fn, (TopK, BatchTopK)):
        return (Reconstruction(), AuxK(weight=1 / 32))
    if isinstance(activation_fn, ReLU):
        return (Reconstruction(), DecoderNormL1(weight=2.0, warmup_fraction=0.05))
    if isinstance(activation_fn, JumpReLU):
        return (Reconstruction(), TanhSparsity(weight=20.0, warmup_fraction=1.0), PreActivation(weight=3e-6))
    raise ValueError(
        f"default_objective: none is known for {type(activation_fn).__name__}; pass "
        "objective=(Reconstruction(), ...) of your choice."
    )
