"""The command line: `crosscoders demo`, `run`, `verify`, `report`, `plan`, `convert`, the experiments."""

import argparse
import dataclasses
import logging
import sys
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crosscoders._version import __version__
from crosscoders.errors import CrosscodersError
from crosscoders.experiments.catalog import EXPERIMENTS, run_experiment
from crosscoders.experiments.opening import open_models, open_study
from crosscoders.experiments.plans import bundled_plan, options_from_toml, plan_from_toml
from crosscoders.experiments.reproduce import reproduce
from crosscoders.hub.convert import add_convert_arguments, convert_command
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.demo import demo
from crosscoders.pipeline.model_config import DTYPES
from crosscoders.pipeline.plan import plan
from crosscoders.pipeline.presets import PRESETS
from crosscoders.pipeline.report import ReportOptions, write_report
from crosscoders.pipeline.run import run
from crosscoders.pipeline.sizes import parse_bytes
from crosscoders.pipeline.verify import VerifyOptions, verify
from crosscoders.report.inspection import inspect_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake ends with its message and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return arguments.command(arguments)
    except (ValueError, OSError, CrosscodersError) as err:
        print(f"crosscoders: {err}", file=sys.stderr)
        return 2


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **settings: Any) -> None:
    """What concerns the user in one line; the others (deprecations and the like) as Python writes them."""
    is_ours = category is UserWarning
    plain = f"crosscoders: warning: {message}\n"
    sys.stderr.write(plain if is_ours else warnings.formatwarning(message, category, *place[:2]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="crosscoders",
        description="See what distillation or fine-tuning changed inside a language model.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shown = commands.add_parser("demo", help="the main job on the bundled pair of models")
    shown.add_argument("--out", default="runs/demo", help="run folder (default: %(default)s)")
    shown.add_argument("--seed", type=int, default=0, help="seed of the crosscoder (default: %(default)s)")
    shown.set_defaults(command=_demo)
    runner = commands.add_parser("run", help="the main job on your own pair and text")
    runner.add_argument("config", nargs="?", type=Path, help="TOML file; see docs/run.md")
    runner.add_argument("--preset", choices=sorted(PRESETS), help="recipe to start from (default: none)")
    runner.add_argument("--base", help="folder or Hub id of the first model")
    runner.add_argument("--distilled", help="folder or Hub id of the second model")
    runner.add_argument("--text", help=".txt or .jsonl file")
    runner.add_argument("--out", help="run folder")
    runner.add_argument("--n-latents", type=int, help="dictionary size")
    runner.add_argument("--hook-name", help="TransformerLens hook in both models, or 'half'")
    runner.add_argument("--n-tokens", type=int, help="tokens of the text to train on")
    runner.add_argument("--seed", type=int, help="seed")
    runner.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint in the run folder"
    )
    runner.add_argument("--warm-start", type=Path, help="folder of a saved crosscoder to begin with")
    runner.set_defaults(command=_run)
    _add_plan(commands)
    converter = commands.add_parser("convert", help="another library's crosscoder into an artifact")
    add_convert_arguments(converter)
    converter.set_defaults(command=_convert)
    _add_report(commands)
    _add_experiments(commands)
    return parser


def _add_report(commands: Any) -> None:
    reporter = commands.add_parser("report", help="a finished run as pages to look at, in one folder")
    reporter.add_argument("run", type=Path, help="folder of a finished run")
    reporter.add_argument("--out", type=Path, help="folder (default: RUN/report)")
    reporter.add_argument("--n-tokens", type=int, help="held-out tokens to read (default: 100000)")
    reporter.add_argument("--no-models", action="store_true", help="without snippets and logit lens")
    reporter.add_argument(
        "--steer", type=int, nargs="+", default=[], metavar="LATENT", help="show text steered by these"
    )
    reporter.add_argument("--prompts", type=Path, help="file of prompts to steer, one in a line")
    reporter.add_argument("--annotations", type=Path, help="CSV file with the columns latent, annotation")
    reporter.set_defaults(command=_report)


def _add_plan(commands: Any) -> None:
    planner = commands.add_parser("plan", help="what a run will hold in memory and what fits, before loading")
    planner.add_argument("config", nargs="?", type=Path, help="TOML file of the run; the rest overrides it")
    planner.add_argument("--pair", nargs=2, metavar=("BASE", "DISTILLED"), help="both models at once")
    planner.add_argument("--base", help="folder, Hub id (only its config is fetched) or config file")
    planner.add_argument("--distilled", help="likewise")
    planner.add_argument("--vram", required=True, help="memory of each device, such as 80GB or 80GiB")
    planner.add_argument("--preset", choices=sorted(PRESETS), help="default without a config: field")
    planner.add_argument("--n-latents", type=int, help="dictionary size")
    planner.add_argument("--hook-name", help="TransformerLens hook in both models, or 'half'")
    planner.add_argument("--dtype", choices=sorted(DTYPES), help="default without a config: bfloat16")
    planner.add_argument("--device", help="default without a config: cuda")
    planner.set_defaults(command=_plan)


def _add_experiments(commands: Any) -> None:
    verifier = commands.add_parser("verify", help="which latents are really specific to one model")
    verifier.add_argument("run", type=Path, help="folder of a finished run")
    verifier.add_argument("--null", help="folder or Hub id of the base after benign training")
    verifier.add_argument("--out", type=Path, help="folder (default: RUN/verify)")
    verifier.add_argument("--short", action="store_true", help="one crosscoder of each: no seeds compared")
    verifier.add_argument("--seeds", type=int, help="crosscoders of the pair and of each null (default: 3)")
    verifier.add_argument("--seed", type=int, default=0, help="of the verification (default: %(default)s)")
    verifier.set_defaults(command=_verify)
    inspector = commands.add_parser("inspect", help="active latents on every token of a text")
    inspector.add_argument("run", type=Path, help="folder of a finished run")
    inspector.add_argument("--prompt", required=True, help="the text")
    inspector.add_argument("--n-latents", type=int, default=6, help="shown per token (default: %(default)s)")
    inspector.set_defaults(command=_inspect)
    one = commands.add_parser("experiment", help="one of the paper's experiments on a finished run")
    one.add_argument("name", choices=list(EXPERIMENTS))
    one.add_argument("run", type=Path, help="folder of a finished run")
    one.add_argument("--config", type=Path, help="TOML file with [material] and the experiment's options")
    one.add_argument("--out", type=Path, help="folder (default: RUN/experiments/NAME)")
    one.set_defaults(command=_experiment)
    everything = commands.add_parser("reproduce", help="all of the paper's experiments, into one folder")
    everything.add_argument("config", nargs="?", type=Path, help="TOML file; see docs/experiments.md")
    everything.add_argument("--pair", help="bundled pair: tiny-reasoner")
    everything.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="default: %(default)s")
    everything.add_argument("--seed", type=int, default=0, help="of a bundled pair (default: %(default)s)")
    everything.set_defaults(command=_reproduce)


def _verify(arguments: argparse.Namespace) -> int:
    options = (
        VerifyOptions.short(seed=arguments.seed) if arguments.short else VerifyOptions(seed=arguments.seed)
    )
    if arguments.seeds is not None:
        options = dataclasses.replace(options, n_seeds=arguments.seeds, n_null_seeds=arguments.seeds)
    found = verify(
        arguments.run, null=arguments.null, out=arguments.out, options=options, say=lambda text: print(text)
    )
    print(f"\n{found.summary()}")
    if found.verdicts.evidence is not None:
        print(f"\nThe verdict on every latent lies in {found.out / 'verdicts.csv'}.")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    if arguments.no_models and arguments.n_tokens is not None:
        raise ValueError("report: --no-models reads no text; leave --n-tokens out.")
    n_tokens = 0 if arguments.no_models else arguments.n_tokens
    options = ReportOptions(
        steer=tuple(arguments.steer),
        annotations=arguments.annotations,
        **({} if n_tokens is None else {"n_tokens": n_tokens}),
    )
    prompts = None if arguments.prompts is None else _prompts(arguments.prompts)
    folder = write_report(
        arguments.run,
        out=arguments.out,
        options=options,
        prompts=prompts,
        say=lambda text: print(text, flush=True),
    )
    print(f"Open {folder / 'index.html'} in a browser.")
    return 0


def _prompts(file: Path) -> list[str]:
    """One prompt a line; empty lines are skipped."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # a prompt may hold other line separators
    except UnicodeDecodeError as err:
        raise ValueError(f"{file}: prompts should be UTF-8 text, one in a line ({err}).") from err
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{file}: holds no prompts; write one in a line, or leave --prompts out.")
    return prompts


def _inspect(arguments: argparse.Namespace) -> int:
    crosscoder, sources = open_models(arguments.run, truncate=True)
    print(inspect_text(crosscoder, sources, text=arguments.prompt, n_latents=arguments.n_latents))
    return 0


def _experiment(arguments: argparse.Namespace) -> int:
    material, options = (
        options_from_toml(arguments.config, arguments.name) if arguments.config else (None, None)
    )
    study = open_study(arguments.run, material=material)
    out = arguments.out or arguments.run / "experiments" / arguments.name
    run_experiment(arguments.name, study, folder=out, options=options)
    print((out / "summary.txt").read_text(encoding="utf-8"), end="")
    print(f"\nFigures and tables lie in {out}.")
    return 0


def _reproduce(arguments: argparse.Namespace) -> int:
    if (arguments.config is None) == (arguments.pair is None):
        raise ValueError("reproduce: give either a config or --pair tiny-reasoner.")
    plan = (
        plan_from_toml(arguments.config)
        if arguments.config
        else bundled_plan(arguments.pair, seed=arguments.seed)
    )
    reproduce(plan, arguments.out, say=lambda text: print(text, flush=True))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    demo(arguments.out, seed=arguments.seed, say=lambda text: print(text, flush=True))
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    print(convert_command(arguments))
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    vram_bytes = parse_bytes(arguments.vram)
    values = _values(arguments.config)
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
    print(plan(_run_config(values, arguments.config), vram_bytes=vram_bytes).summary())
    return 0


# What a plan without a configuration is made for; the buffer lives in CPU memory.
_PLANNED: dict[str, Any] = {
    "preset": "field",
    "text": "",
    "out": "",
    "device": "cuda",
    "data": {"buffer_bytes": 8_000_000_000, "sequences_per_harvest": 8, "splice_tokens": 0},
}


def _with_model(known: Any, path: str | None, *, dtype: str | None) -> Any:
    """A model's table with what the command line says of it; without a configuration it is in bfloat16."""
    if known is not None and not isinstance(known, str | Mapping):
        return known  # which RunConfig refuses
    table = {"dtype": "bfloat16"} if known is None else {"path": known} if isinstance(known, str) else known
    said = {"path": path, "dtype": dtype}
    return {**table, **{key: value for key, value in said.items() if value is not None}}


_RUN_KEYS = ("preset", "base", "distilled", "text", "out", "n_latents", "hook_name", "seed")


def _run(arguments: argparse.Namespace) -> int:
    values = _values(arguments.config)
    values |= {key: value for key in _RUN_KEYS if (value := getattr(arguments, key)) is not None}
    if arguments.n_tokens is not None and isinstance(values.get("data", {}), Mapping):
        values["data"] = {**values.get("data", {}), "n_tokens": arguments.n_tokens}
    config = _run_config(values, arguments.config)
    print(run(config, resume=arguments.resume, warm_start=arguments.warm_start).summary())
    return 0


def _values(config: Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    try:
        return tomllib.loads(config.read_text(encoding="utf-8"))
    except ValueError as err:
        raise ValueError(f"{config}: {err}") from err


def _run_config(values: Mapping[str, Any], config: Path | None) -> RunConfig:
    try:
        return RunConfig.from_dict(values)
    except (TypeError, ValueError) as err:
        raise ValueError(f"{config or 'command line'}: {err}") from err


if __name__ == "__main__":
    sys.exit(main())
