"""`SteeringHook`: editing latents of one source's model while it runs."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.harvest import ModelSources
from crosscoders.interventions.codes import CodeReader, Codes, check_equal_widths
from crosscoders.interventions.directions import as_target, only_at
from crosscoders.interventions.edits import Add, Edit
from crosscoders.interventions.positions import Positions
from crosscoders.interventions.site import SiteForward, edit_site
from crosscoders.models.base import LanguageModel
from crosscoders.sources import Source, source_index

SteeringUnit = Literal["residual_norm", "max_activation", "raw", "activation"]


class SteeringHook:
    """Edits some latents of a crosscoder in one source's residual stream.

    Every edit is a change of a latent's activation, delta_j = new_j - f_j, and every chosen position gets
    h <- h + sum_j delta_j d_j, with d_j latent j's decoder row of the source in raw space. What the
    crosscoder does not reconstruct stays as it is (formula: Templeton et al. 2024, "error-preserving").
    With `keep_error=False` the reconstruction takes its place: h <- decode(f + delta) of the source.

    `Add` needs no codes, so one model is enough; the other edits, and `keep_error=False`, need the
    activation f, which depends on all sources (see `codes`). Hooks compose: those on the same model and hook
    name read the clean activation, and their edits add up in any order. Two that ablate the same latent
    therefore take it out twice.

    Args:
        crosscoder: The trained crosscoder; read in evaluation mode, its directions as they are now.
        edits: What to do to each latent by its index: `Add`, `Scale`, `Clamp`, `Ablate`, or a number, which
            means `Add`. May be empty with `keep_error=False`: the plain reconstruction.
        source: The source whose decoder rows and hook are used.
        unit: What an amount of 1 means in `Add` and `Clamp`. "residual_norm": the mean norm of this source's
            residual stream, sqrt(d_model) / scale. "max_activation": the latent's largest activation. "raw":
            a vector of length 1. "activation": the latent's own unit.
        max_activations: Largest activation of each latent, above 0 unless its amount is 0; required by, and
            only for, "max_activation".
        codes: Where activations come from. "lockstep": all source models run on the same tokens, each with
            its own KV cache, the others unsteered. "swap": this source's normalized activation in every slot
            (equal widths only). "own": only this source's encoder columns.
        sources: The models of all sources, for codes in lockstep.
        keep_error: Keep what the crosscoder does not reconstruct.
        after: Act only at positions strictly after this marker (see `AddVector`).
        from_position: Act only from this position of the row on (see `AddVector`).
        positions: Act only at these positions of the row (see `AddVector`).
        at_tokens: Act only where the token read is one of these ids (see `AddVector`).

    Raises:
        ValueError: No such source or latent, no edits, an amount or length that is not finite, a largest
            activation that is not above 0, a source without hook name, or codes that cannot be had.

    Example:
        wait = SteeringHook(crosscoder, {1432: 0.6}, source="distilled", after="<think>")
        with wait.on(hf_model):
            out = hf_model.generate(**inputs, max_new_tokens=400)
    """

    @typed
    def __init__(
        self,
        crosscoder: Crosscoder,
        edits: Mapping[int, int | float | Edit],
        *,
        source: str,
        unit: SteeringUnit = "residual_norm",
        max_activations: Mapping[int, int | float] | None = None,
        codes: Codes = "lockstep",
        sources: ModelSources | None = None,
        keep_error: bool = True,
        after: str | int | Sequence[int] | None = None,
        from_position: int = 0,
        positions: Sequence[int] | None = None,
        at_tokens: Sequence[int] | None = None,
    ) -> None:
        self.source = _hooked_source(crosscoder, source)
        self.edits = {j: edit if isinstance(edit, Edit) else Add(edit) for j, edit in edits.items()}
        self.unit: SteeringUnit = unit
        self.codes: Codes = codes
        self.keep_error = keep_error
        self.where = Positions(
            owner="SteeringHook",
            after=after,
            from_position=from_position,
            positions=positions,
            at_tokens=at_tokens,
        )
        _check_options(self.edits, unit=unit, max_activations=max_activations, keep_error=keep_error)
        if codes == "swap":
            check_equal_widths(crosscoder)
        self._reader = None
        if self.reads_codes:
            self._reader = CodeReader(crosscoder, self.source, codes=codes, sources=sources)
        units = _Units(crosscoder, self.source, unit=unit, max_activations=max_activations)
        self._vector = _added(units, self.edits, d_model=self.source.d_model)
        self._coded = _CodedEdits(units, self.edits)

    @property
    def vector(self) -> Float[Tensor, " d_model"]:
        """What the `Add` edits put at every chosen position, in the model's raw space; zero without any."""
        return self._vector

    @property
    def reads_codes(self) -> bool:
        """Whether any edit depends on the latents' activations."""
        return not self.keep_error or any(edit.needs_codes for edit in self.edits.values())

    def describe(self) -> dict[str, Any]:
        """The hook as JSON-ready facts, for result records; `codes` is None where none are read."""
        return {
            "kind": "steering",
            "source": self.source.name,
            "hook_name": self.source.hook_name,
            "edits": [{"latent": j, **edit.describe()} for j, edit in self.edits.items()],
            "unit": self.unit,
            "codes": self.codes if self.reads_codes else None,
            "keep_error": self.keep_error,
            "where": self.where.describe(),
        }

    @contextmanager
    def on(self, model: Any) -> Iterator[LanguageModel]:
        """Act on every forward of a model while the block runs, `generate` with a KV cache included.

        If it is limited to positions, or reads codes in lockstep, enter the block before a generation
        starts, not in its middle. Nothing is left behind at the end, after an exception neither.

        Args:
            model: The source's model: LanguageModel, plain Hugging Face module or TransformerBridge.

        Yields:
            The model as a LanguageModel.

        Raises:
            ValueError: A model of another width or of another source, or a marker without token ids.
        """
        what = f"SteeringHook: source {self.source.name!r}"
        target = as_target(model, d_model=self.source.d_model, what=what)
        with ExitStack() as stack:
            chosen = stack.enter_context(self.where.on(target))
            site = stack.enter_context(edit_site(target, self.source.hook_name))
            reader = self._reader
            if reader is not None:
                reader = stack.enter_context(site.reader(reader, target))
                if not self.keep_error:
                    stack.enter_context(site.replacing(reader))
            stack.enter_context(site.part(self._changing(chosen, reader)))
            yield target

    def _changing(
        self, chosen: Callable[[], Tensor | None], reader: CodeReader | None
    ) -> Callable[[SiteForward], Tensor]:
        def change(forward: SiteForward) -> Tensor:
            at, delta = chosen(), self._vector.to(device=forward.activation.device, dtype=forward.dtype)
            if reader is not None and self._coded:
                delta = delta + self._coded.delta(forward, reader)
            if reader is not None and not self.keep_error:
                forward.drop_error(reader, at)
            return only_at(at, delta)

        return change


class _Units:
    """What amounts mean for each latent of one source."""

    def __init__(
        self,
        crosscoder: Crosscoder,
        source: Source,
        *,
        unit: SteeringUnit,
        max_activations: Mapping[int, int | float] | None,
    ) -> None:
        self._crosscoder = crosscoder
        self._source = source
        self._unit = unit
        self._max_activations = max_activations

    def direction(self, latent: int) -> Tensor:
        """What one unit of the latent's activation adds to the stream."""
        return self._crosscoder.steering_direction(latent, self._source.name).float()

    def vector(self, latent: int, edit: Add) -> Tensor:
        """The vector that an amount of 1 stands for."""
        direction, norm = self.direction(latent), self._norm(latent)
        if self._unit == "raw":
            return direction / norm
        if self._unit == "residual_norm":
            return direction / norm * (math.sqrt(self._source.d_model) / self._source.scale)
        return direction if self._unit == "activation" else direction * self._largest(latent, edit)

    def amount(self, latent: int, edit: Edit) -> float:
        """The change of activation that an amount of 1 stands for; NaN for edits that have no unit."""
        if not edit.has_unit:
            return math.nan
        if self._unit == "raw":
            return 1 / self._norm(latent)
        if self._unit == "residual_norm":
            return math.sqrt(self._source.d_model) / self._source.scale / self._norm(latent)
        return 1.0 if self._unit == "activation" else float(self._largest(latent, edit))

    def _norm(self, latent: int) -> float:
        norm = self.direction(latent).norm().item()
        if not (math.isfinite(norm) and norm > 0):
            raise ValueError(
                f"SteeringHook: latent {latent} has decoder norm {norm} in source {self._source.name!r}; "
                "it has no direction."
            )
        return norm

    def _largest(self, latent: int, edit: Edit) -> int | float:
        if self._max_activations is None or latent not in self._max_activations:
            raise ValueError(f"SteeringHook: max_activations has no entry for latent {latent}.")
        largest = self._max_activations[latent]
        if edit.change(1.0).offset != 0 and not (math.isfinite(largest) and largest > 0):
            raise ValueError(
                f"SteeringHook: latent {latent} cannot be edited in units of its largest activation: "
                f"expected a finite number above 0 in max_activations, got {largest}; a latent that never "
                'fires has no such unit, so choose another one or unit="residual_norm".'
            )
        return largest


class _CodedEdits:
    """Those edits of a hook that depend on codes, as one slope and offset per latent."""

    def __init__(self, units: _Units, edits: Mapping[int, Edit]) -> None:
        chosen = {latent: edit for latent, edit in edits.items() if edit.needs_codes}
        changes = [edit.change(units.amount(latent, edit)) for latent, edit in chosen.items()]
        self._latents = torch.tensor(list(chosen), dtype=torch.int64)
        directions = [units.direction(latent) for latent in chosen]
        self._directions = torch.stack(directions) if directions else torch.zeros(0, 0)
        self._slope = torch.tensor([change.slope for change in changes])
        self._offset = torch.tensor([change.offset for change in changes])
        self._where_active = torch.tensor([change.where_active for change in changes])
        if not bool(self._offset.isfinite().all()):
            raise ValueError("SteeringHook: a latent is clamped to NaN or infinite activation.")

    def __bool__(self) -> bool:
        return len(self._latents) > 0

    def delta(self, forward: SiteForward, reader: CodeReader) -> Tensor:
        """What the edits add to the stream [batch pos d_model]: sum_j (new_j - f_j) d_j."""
        f = forward.columns(reader, self._latents)
        is_set = (f != 0) | ~self._where_active.to(f.device)
        offset = self._offset.to(f).expand_as(f).where(is_set, 0.0)
        return (self._slope.to(f) * f + offset) @ self._directions.to(f)


def _hooked_source(crosscoder: Crosscoder, name: str) -> Source:
    source = crosscoder.sources[source_index(crosscoder.sources, name)]
    if not source.hook_name:
        raise ValueError(
            f"SteeringHook: source {name!r} names no hook (it was trained on own tensors); take "
            "crosscoder.steering_direction(latent, source) and AddVector(..., hook_name=...) instead."
        )
    return source


def _check_options(
    edits: Mapping[int, Edit],
    *,
    unit: SteeringUnit,
    max_activations: Mapping[int, int | float] | None,
    keep_error: bool,
) -> None:
    if not edits and keep_error:
        raise ValueError(
            "SteeringHook: edits is empty; pass {latent: strength} or {latent: Ablate()}, or "
            "keep_error=False for the plain reconstruction."
        )
    if (unit == "max_activation") != (max_activations is not None):
        raise ValueError(
            f'SteeringHook: max_activations goes with unit="max_activation" and only with it, '
            f"got unit={unit!r} and max_activations={max_activations}."
        )


def _added(units: _Units, edits: Mapping[int, Edit], *, d_model: int) -> Tensor:
    """Sum of what the `Add` edits add."""
    parts = [edit.strength * units.vector(j, edit) for j, edit in edits.items() if isinstance(edit, Add)]
    vector = torch.stack(parts).sum(dim=0) if parts else torch.zeros(d_model)
    if not bool(vector.isfinite().all()):
        raise ValueError("SteeringHook: what is added holds NaN or infinite entries.")
    return vector
