"""The command line: `crosscoders demo`, `run`, `inspect`, `experiment` and `reproduce`."""

import argparse
import logging
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crosscoders._version import __version__
from crosscoders.errors import CrosscodersError
from crosscoders.experiments.catalog import EXPERIMENTS, run_experiment
from crosscoders.experiments.opening import open_models, open_study
from crosscoders.experiments.plans import bundled_plan, options_from_toml, plan_from_toml
from crosscoders.experiments.reproduce import reproduce
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.demo import demo
from crosscoders.pipeline.presets import PRESETS
from crosscoders.pipeline.run import run
from crosscoders.report.inspection import inspect_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake ends with its message and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    arguments = _parser().parse_args(argv)
    try:
        return arguments.command(arguments)
    except (ValueError, OSError, CrosscodersError) as err:
        print(f"crosscoders: {err}", file=sys.stderr)
        return 2


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
    runner.set_defaults(command=_run)
    _add_experiments(commands)
    return parser


def _add_experiments(commands: Any) -> None:
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


def _inspect(arguments: argparse.Namespace) -> int:
    crosscoder, sources = open_models(arguments.run)
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


_RUN_KEYS = ("preset", "base", "distilled", "text", "out", "n_latents", "hook_name", "seed")


def _run(arguments: argparse.Namespace) -> int:
    values = tomllib.loads(arguments.config.read_text(encoding="utf-8")) if arguments.config else {}
    values |= {key: value for key in _RUN_KEYS if (value := getattr(arguments, key)) is not None}
    if arguments.n_tokens is not None:
        values["data"] = {**values.get("data", {}), "n_tokens": arguments.n_tokens}
    try:
        config = RunConfig.from_dict(values)
    except (TypeError, ValueError) as err:
        raise ValueError(f"{arguments.config or 'command line'}: {err}") from err
    print(run(config, resume=arguments.resume).summary())
    return 0


if __name__ == "__main__":
    sys.exit(main())
