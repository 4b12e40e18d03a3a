"""Find and read the files of a foreign crosscoder: one weights file and what lies beside it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from crosscoders._io import member_path
from crosscoders.errors import CheckpointError
from crosscoders.hub.formats.pickle_files import read_pickle_file

SAFE_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".pt", ".pth", ".bin")
_MAX_CONFIG_BYTES = 16 << 20
_CONFIGS = ("cfg.json", "config.json", "model_cfg.yaml", "config.yaml", "hparams.json")
_TRAINER = "trainer_config.json"
_COMPILED = "_orig_mod."
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ForeignFile:
    """One weights file with the configs beside it.

    Args:
        path: The weights file.
        shapes: Shape of each tensor, under its name without the prefix of torch.compile.
        extras: What a `.pt` file holds besides tensors.
        config: The config beside the file; empty if there is none.
        trainer: The entry "trainer" of `trainer_config.json` or else of the config; empty if there is none.
        files: All files that were read.
        loaded: Tensors that are already in memory; those of a safetensors file are read on request.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    extras: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    loaded: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Without this the other axes could claim any size, such as 2**60 sources, with no byte behind it.
        empty = sorted(key for key, shape in self.shapes.items() if 0 in shape)
        if empty:
            raise CheckpointError(f"{self.path}: {empty} hold no numbers: an axis has length 0.")

    def tensor(self, key: str) -> Tensor:
        """A stored tensor as it is."""
        if key not in self.shapes:
            raise CheckpointError(f"{self.path}: tensor {key!r} is missing; it has {sorted(self.shapes)}.")
        if key in self.loaded:
            return self.loaded[key]
        with open_safetensors(self.path) as handle:
            stored = {plain_key(name): name for name in handle.keys()}  # noqa: SIM118 (no mapping)
            return handle.get_tensor(stored[key])

    def weight(self, key: str, *shape: int) -> Tensor:
        """A stored tensor as finite float32 (float64 stays), of this shape if one is given."""
        tensor = self.tensor(key)
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(f"{self.path}: {key!r} should be floating point, got {tensor.dtype}.")
        if shape and tuple(tensor.shape) != shape:
            raise CheckpointError(f"{self.path}: {key!r} should be {shape}, got {tuple(tensor.shape)}.")
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{self.path}: {key!r} holds NaN or infinity.")
        return tensor if tensor.dtype == torch.float64 else tensor.float()

    def scalar(self, key: str) -> float:
        """A stored tensor of one element as a number."""
        tensor = self.tensor(key)
        if tensor.numel() != 1:
            raise CheckpointError(f"{self.path}: {key!r} should be one number, got {tuple(tensor.shape)}.")
        return float(tensor.item())

    def check_known(self, *known: str) -> None:
        """Raise unless every tensor is one that the format knows."""
        unknown = sorted(set(self.shapes) - set(known))
        if unknown:
            raise CheckpointError(
                f"{self.path}: unknown tensors {unknown}; this format has {sorted(known)}. They may change "
                "what the crosscoder computes, so they are not left out."
            )

    def check_config(self, **expected: int) -> None:
        """Raise where a config states a size that the tensors do not have."""
        for name, stated in ((name, part[name]) for part in (self.config, self.trainer) for name in part):
            if name in expected and stated != expected[name]:
                raise CheckpointError(
                    f"{self.path}: the config says {name}={stated!r}, the tensors say {expected[name]}."
                )

    def text(self, name: str) -> str:
        """A text of the config, or "" if it is absent or something else."""
        value = self.config.get(name, "")
        return value if isinstance(value, str) else ""


def plain_key(key: str) -> str:
    """The name that a tensor has without torch.compile."""
    return key.removeprefix(_COMPILED)


def open_safetensors(path: Path) -> Any:
    """Open a safetensors file; the library checks that its header accounts for every byte."""
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as err:
        raise CheckpointError(f"{path}: not readable as safetensors ({err}).") from err


def read_weights_file(path: Path) -> ForeignFile:
    """Read one file's tensors (of safetensors the header alone) and the configs beside it."""
    config, trainer, used = _configs_beside(path)
    loaded: dict[str, Tensor] = {}
    extras: dict[str, Any] = {}
    if path.suffix == SAFE_SUFFIX:
        with open_safetensors(path) as handle:
            names = list(handle.keys())
            shapes = {plain_key(name): tuple(handle.get_slice(name).get_shape()) for name in names}
    else:
        tensors, extras = read_pickle_file(path)
        names = list(tensors)
        loaded = {plain_key(name): tensor for name, tensor in tensors.items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in loaded.items()}
    if len(shapes) != len(names):
        raise CheckpointError(f"{path}: a tensor is stored with and without the prefix {_COMPILED!r}.")
    return ForeignFile(
        path=path,
        shapes=shapes,
        extras=extras,
        config=config,
        trainer=trainer,
        files=(path, *used),
        loaded=loaded,
    )


def weights_files(path: Path, *, allow_pickle_files: bool) -> list[Path]:
    """The files of a folder (or the one file) that may hold weights; safetensors before pickles."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder.")
    if path.is_file():
        folder, names = path.parent, [path.name]
    else:
        folder, names = path, sorted(child.name for child in path.iterdir() if child.is_file())
    safe = [name for name in names if Path(name).suffix == SAFE_SUFFIX]
    pickled = [name for name in names if Path(name).suffix in PICKLE_SUFFIXES]
    if not safe and pickled and not allow_pickle_files:
        raise CheckpointError(
            f"{path}: holds its weights in {', '.join(pickled[:3])}, a pickle; only safetensors "
            "is read here. "
            f"Turn it into an artifact once with `crosscoders convert {path} OUT`."
        )
    if not safe and not pickled:
        raise CheckpointError(f"{path}: expected a {SAFE_SUFFIX} or {'/'.join(PICKLE_SUFFIXES)} file.")
    return [member_path(folder, name) for name in safe or pickled]


def _configs_beside(path: Path) -> tuple[dict[str, Any], dict[str, Any], list[Path]]:
    used: list[Path] = []
    config: dict[str, Any] = {}
    for name in (f"{path.stem}_cfg.json", f"{path.stem}_config.json", *_CONFIGS):
        found = path.parent / name
        if found.is_file():
            used.append(member_path(path.parent, name))
            config = read_config(used[0])
            break
    stated = config
    if (path.parent / _TRAINER).is_file():
        used.append(member_path(path.parent, _TRAINER))
        stated = read_config(used[-1])
    trainer = stated.get("trainer")
    return config, trainer if isinstance(trainer, dict) else {}, used


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML mapping; YAML through the loader that builds plain values alone."""
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes are too many for a config.")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else _read_yaml(text)
    except (ValueError, RecursionError) as err:
        raise CheckpointError(f"{path}: not readable as {path.suffix[1:]} ({err}).") from err
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a mapping, got {type(content).__name__}.")
    return content


def _read_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise ValueError(str(err)) from err
