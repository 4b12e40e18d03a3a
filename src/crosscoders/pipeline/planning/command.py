"""`crosscoders plan`: its arguments, and the plan that they ask for as text."""

import argparse
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crosscoders._typing import typed
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.config_file import config_of, toml_values
from crosscoders.pipeline.model_config import DTYPES
from crosscoders.pipeline.planning.plan import plan
from crosscoders.pipeline.planning.ranks import RankLayout
from crosscoders.pipeline.planning.speed import SPEEDS, Speed
from crosscoders.pipeline.presets import PRESETS
from crosscoders.pipeline.sizes import parse_bytes

# What a plan without a configuration is made for; the buffer lives in CPU memory.
_PLANNED: dict[str, Any] = {
    "preset": "field",
    "text": "",
    "out": "",
    "device": "cuda",
    "data": {"buffer_bytes": 8_000_000_000, "sequences_per_harvest": 8, "splice_tokens": 0},
}

# A device of which only its measured rates are used.
_MEASURED = Speed(
    name="measured", bfloat16=math.inf, float32=math.inf, bandwidth=math.inf, memory=1, source="two rates"
)


@typed
def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser what `plan_command` reads.

    Args:
        parser: Of the command `plan`.
    """
    parser.add_argument("config", nargs="?", type=Path, help="TOML file of the run; the rest overrides it")
    parser.add_argument(
        "--pair", nargs=2, metavar=("BASE", "DISTILLED"), help="both models at once: --base and --distilled"
    )
    parser.add_argument(
        "--base", help="first model: folder, Hub id (only its config is fetched) or config file"
    )
    parser.add_argument("--distilled", help="likewise, of the second model")
    parser.add_argument("--vram", help="memory of each device, such as 80GB or 80GiB (default: --gpu's)")
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), help="recipe to start from (default without a config: field)"
    )
    parser.add_argument("--n-latents", type=int, help="dictionary size")
    parser.add_argument("--hook-name", help="TransformerLens hook in both models, or 'half'")
    parser.add_argument("--n-tokens", type=int, help="tokens of the text to train on")
    parser.add_argument("--store", help="folder in which the run keeps its activations")
    parser.add_argument(
        "--dtype", choices=sorted(DTYPES), help="of both models (default without a config: bfloat16)"
    )
    parser.add_argument("--device", help="device of the run (default without a config: cuda)")
    parser.add_argument(
        "--devices", type=int, default=1, help="GPUs that one process may use (default: %(default)s)"
    )
    parser.add_argument(
        "--ranks", type=int, default=1, help="processes that torchrun starts (default: %(default)s)"
    )
    parser.add_argument("--latent-shards", type=int, help="ranks that split the latents (default: config's)")
    parser.add_argument("--gpu", choices=sorted(SPEEDS), help="kind of the devices: their memory, and hours")
    parser.add_argument("--harvest-rate", type=float, help="tokens per second of all models, if measured")
    parser.add_argument("--training-rate", type=float, help="tokens per second of training, if measured")


@typed
def plan_command(arguments: argparse.Namespace) -> str:
    """The plan that the arguments ask for, as text.

    Args:
        arguments: What a parser of `add_plan_arguments` parsed.

    Raises:
        ValueError: No memory size, no models, one measured rate without `--gpu`, `--gpu` for a run on the
            CPU, or what `plan` refuses.
    """
    speed = _speed(arguments)
    if arguments.vram is None and arguments.gpu is None:
        raise ValueError("plan: give --vram, such as 80GB, or --gpu.")
    vram_bytes = SPEEDS[arguments.gpu].memory if arguments.vram is None else parse_bytes(arguments.vram)
    config = _config(arguments)
    if arguments.gpu is not None and config.device == "cpu":
        raise ValueError(
            "plan: --gpu estimates a run on GPUs, and device is 'cpu'; give --device cuda, or --vram with "
            "both measured rates."
        )
    shards = config.system.latent_shards if arguments.ranks > 1 else 1
    shards = shards if arguments.latent_shards is None else arguments.latent_shards
    found = plan(
        config,
        vram_bytes=vram_bytes,
        ranks=RankLayout(n_ranks=arguments.ranks, latent_shards=shards),
        n_devices=arguments.devices,
        speed=speed,
    )
    return found.summary()


def _speed(arguments: argparse.Namespace) -> Speed | None:
    rates = {"harvest_rate": arguments.harvest_rate, "training_rate": arguments.training_rate}
    given = {name: rate for name, rate in rates.items() if rate is not None}
    if arguments.gpu is not None:
        return dataclasses.replace(SPEEDS[arguments.gpu], **given)
    if len(given) == 1:
        raise ValueError("plan: one measured rate needs --gpu, from which the other is estimated.")
    return dataclasses.replace(_MEASURED, **given) if given else None


def _config(arguments: argparse.Namespace) -> RunConfig:
    values = toml_values(arguments.config)
    base, distilled = arguments.pair or (arguments.base, arguments.distilled)
    if not arguments.config:
        if base is None or distilled is None:
            raise ValueError("plan: give a config, --pair, or --base and --distilled.")
        values = dict(_PLANNED)
    paths = {"base": base, "distilled": distilled}
    values |= {
        name: _with_model(values.get(name), path, dtype=arguments.dtype) for name, path in paths.items()
    }
    keys = ("preset", "n_latents", "hook_name", "device")
    values |= {key: value for key in keys if (value := getattr(arguments, key)) is not None}
    values |= _with_key(values, "data", "n_tokens", arguments.n_tokens)
    values |= _with_key(values, "system", "store", arguments.store)
    return config_of(values, path=arguments.config)


def _with_key(values: Mapping[str, Any], section: str, key: str, value: Any) -> dict[str, Any]:
    """A section with one value that the command line gives; nothing where it gives none."""
    known = values.get(section, {})
    if value is None or not isinstance(known, Mapping):  # which RunConfig refuses
        return {}
    return {section: {**known, key: value}}


def _with_model(known: Any, path: str | None, *, dtype: str | None) -> Any:
    """A model's table with what the command line says of it; without a configuration it is in bfloat16."""
    if known is not None and not isinstance(known, str | Mapping):
        return known  # which RunConfig refuses
    table = {"dtype": "bfloat16"} if known is None else {"path": known} if isinstance(known, str) else known
    said = {"path": path, "dtype": dtype}
    return {**table, **{key: value for key, value in said.items() if value is not None}}
