"""Lists every key that the library writes to disk, and the axes of every tensor."""

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import crosscoders as cc
from crosscoders.models.id_policy import IdPolicy, IdRule
from crosscoders.pipeline.model_config import ModelConfig
from crosscoders.training.checkpoints.files import read_checkpoint

# Sizes that occur once each, so that a shape says its axes.
_N_LATENTS = 7
_SOURCES = (cc.Source(name="base", d_model=2), cc.Source(name="distilled", d_model=3))
_AXES = {_N_LATENTS: "latent", 5: "width"}
_SPECS: tuple[cc.ActivationFn, ...] = (cc.ReLU(), cc.TopK(k=2), cc.BatchTopK(k=2), cc.JumpReLU())
_OBJECTIVE: tuple[cc.LossTerm, ...] = (
    cc.Reconstruction(),
    cc.DecoderNormL1(),
    cc.AuxK(),
    cc.JumpReLUL0(),
    cc.TanhSparsity(),
    cc.PreActivation(),
    cc.DifferenceReconstruction(),
    cc.SharedDecoderNormL1(n_shared=1),
)
_STRUCTURES: tuple[cc.Structure, ...] = (
    cc.SharedLatents(n_shared=1),
    cc.DedicatedLatents(n_per_source=(1, 1)),
)
# Below these keys stands what another library, the caller or the data decide.
_FOREIGN = ("trainer.optimizer", "trainer.callbacks", "batches.state", "training_summary.")


def key_lines() -> list[str]:
    """All lines of tests/stored_keys.txt, sorted."""
    lines = {*state_dict_lines(), *config_lines()}
    with tempfile.TemporaryDirectory() as folder:
        lines |= {*artifact_lines(Path(folder)), *checkpoint_lines(Path(folder))}
    return sorted(lines)


def toy_crosscoder(spec: cc.ActivationFn) -> cc.Crosscoder:
    """A crosscoder whose sizes are all different."""
    return cc.Crosscoder(cc.CrosscoderConfig(sources=_SOURCES, n_latents=_N_LATENTS, activation_fn=spec))


def axes_of(tensor: Tensor) -> str:
    """The shape in the words of the axis legend; raises for a size that has none."""
    return f"[{' '.join(_AXES[size] for size in tensor.shape)}]"


def state_dict_lines() -> Iterator[str]:
    """Tensors of a crosscoder, by activation function."""
    for spec in _SPECS:
        for key, tensor in toy_crosscoder(spec).state_dict().items():
            yield f"state_dict {spec.kind}: {key} {axes_of(tensor)}"


def config_lines() -> Iterator[str]:
    """Keys of everything that is written as a config."""
    yield from _lines("Source", _SOURCES[0].to_dict())
    for spec in _SPECS:
        yield from _lines(f"activation_fn {spec.kind}", spec.to_dict())
    for term in _OBJECTIVE:
        yield from _lines(f"objective {term.name}", {"term": term.name, **dataclasses.asdict(term)})
    for structure in _STRUCTURES:
        yield from _lines(f"structure {structure.kind}", structure.to_dict())
    one = (_SOURCES[0], dataclasses.replace(_SOURCES[0], name="other"))
    config = dataclasses.replace(toy_crosscoder(cc.ReLU()).config, sources=one, structure=_STRUCTURES[0])
    yield from _lines("CrosscoderConfig", _without(config.to_dict(), "activation_fn", "sources"))
    yield from _lines("TrainerConfig", cc.TrainerConfig().to_dict())
    parts = (cc.TextPart(path="a.txt"), cc.TextPart(path="b.txt"))
    model = ModelConfig(path="a")
    policy = IdPolicy(rules=(IdRule(action="replace", token_ids=(1,), source="base", neutral=2),))
    run = cc.RunConfig(
        base=model,
        distilled=model,
        text=parts,
        out="c",
        n_latents=1000,
        data=cc.DataConfig(id_policy=policy),
    )
    yield from _lines("RunConfig", _without(run.to_dict(), "activation_fn", "objective", "training"))


def artifact_lines(folder: Path) -> Iterator[str]:
    """Files of a saved crosscoder, and the keys of its config.json beside the crosscoder's own."""
    toy_crosscoder(cc.ReLU()).save_pretrained(folder / "saved", training_summary={})
    for path in sorted((folder / "saved").iterdir()):
        yield f"artifact: file {path.name}"
    content = json.loads((folder / "saved" / "config.json").read_text(encoding="utf-8"))
    yield from _lines("artifact config.json", _without(content, "crosscoder"))


def checkpoint_lines(folder: Path) -> Iterator[str]:
    """Files of a checkpoint, and the keys of its manifest and its state."""
    trainer = cc.Trainer(
        toy_crosscoder(cc.BatchTopK(k=2)),
        [cc.Reconstruction(), cc.AuxK()],
        config=cc.TrainerConfig(checkpoint_every_steps=1),
        checkpoint_dir=folder / "checkpoints",
    )
    trainer.fit([torch.randn(8, 5, generator=torch.Generator().manual_seed(0))])
    checkpoint = folder / "checkpoints" / "step-000000001"
    for path in sorted(checkpoint.iterdir()):
        yield f"checkpoint: file {path.name}"
    manifest = json.loads((checkpoint / "checkpoint.json").read_text(encoding="utf-8"))
    yield from _lines("checkpoint checkpoint.json", manifest)
    state = read_checkpoint(checkpoint)
    trainer_state = _without(state["trainer"], "crosscoder", "crosscoder_config", "run")
    yield from _lines("checkpoint state", {**state, "trainer": trainer_state})
    yield from (f"checkpoint state: trainer.{key}.*" for key in ("crosscoder", "crosscoder_config", "run"))
    own = set(state["trainer"]["run"]) - set(cc.TrainerConfig().to_dict())
    yield from (f"checkpoint state: trainer.run.{key}" for key in sorted(own))


def _without(data: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """The mapping without what is listed elsewhere."""
    return {key: value for key, value in data.items() if key not in keys}


def _lines(what: str, value: Any) -> Iterator[str]:
    for key in sorted(set(_keys(value, prefix=""))):
        yield f"{what}: {key}"


def _keys(value: Any, *, prefix: str) -> Iterator[str]:
    """The dotted keys of nested mappings; the items of a list share one key."""
    is_leaf = prefix.startswith(_FOREIGN) or not isinstance(value, Mapping | list | tuple)
    if is_leaf or not value or (not isinstance(value, Mapping) and not isinstance(value[0], Mapping)):
        yield prefix
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _keys(inner, prefix=f"{prefix}.{key}".lstrip("."))
    else:
        for inner in value:
            yield from _keys(inner, prefix=f"{prefix}[]")
