"""The command line: `crosscoders COMMAND`.

A pair: `demo`, `run`, `sweep`; before and beside a run: `doctor`, `plan`, `store`; what a run found:
`verify`, `report`, `inspect`, `experiment`, `reproduce`; other libraries' files: `convert`.
"""

import argparse
import dataclasses
import logging
import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from crosscoders._version import __version__
from crosscoders.errors import CrosscodersError
from crosscoders.experiments.catalog import EXPERIMENTS, run_experiment
from crosscoders.experiments.opening import open_models, open_study
from crosscoders.experiments.plans import bundled_plan, options_from_toml, plan_from_toml
from crosscoders.experiments.reproduce import reproduce
from crosscoders.hub.convert import add_convert_arguments, convert_command
from crosscoders.parallel.failure import one_clear_message
from crosscoders.parallel.launch import from_torchrun, is_main, n_ranks
from crosscoders.pipeline.arguments import add_preempt_argument
from crosscoders.pipeline.config_file import config_of, toml_values
from crosscoders.pipeline.demo import demo
from crosscoders.pipeline.installation.doctor import add_doctor_arguments, doctor_command
from crosscoders.pipeline.planning.command import add_plan_arguments, plan_command
from crosscoders.pipeline.presets import PRESETS
from crosscoders.pipeline.ranks import join_run
from crosscoders.pipeline.report import ReportOptions, write_report
from crosscoders.pipeline.run import run
from crosscoders.pipeline.store_command import add_store_arguments, store_command
from crosscoders.pipeline.sweep.command import add_sweep_arguments, sweep_command
from crosscoders.pipeline.verify import VerifyOptions, verify
from crosscoders.report.inspection import inspect_text
from crosscoders.training.preemption import Preempted, Preemption

_RESUME_RANKS = "Go on with the same command and --resume."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake ends with its message and exit code 2."""
    logging.basicConfig(level=logging.INFO if is_main() else logging.WARNING, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings(), _preemption(arguments), _clear_message(arguments):
            warnings.showwarning = _show_warning
            _check_ranks(arguments)
            return arguments.command(arguments)
    except Preempted as preempted:
        if is_main():
            print(f"crosscoders: {preempted} {_go_on(arguments, argv)}", file=sys.stderr)
        return preempted.exit_code
    except (ValueError, OSError, ImportError, CrosscodersError, torch.OutOfMemoryError) as err:
        print(f"crosscoders: {err}", file=sys.stderr)
        return 2


def _go_on(arguments: argparse.Namespace, argv: Sequence[str] | None) -> str:
    """How to go on with a command that was asked to end."""
    if n_ranks() > 1:
        return _RESUME_RANKS
    again = ["crosscoders", *(sys.argv[1:] if argv is None else argv)]
    again += ["--resume"] if getattr(arguments, "resume", None) is False else []
    return f"Go on with: {shlex.join(again)}"


def _clear_message(arguments: argparse.Namespace) -> AbstractContextManager[None]:
    """On several ranks one of them says why the run fails."""
    return one_clear_message(
        lambda text: print(f"crosscoders: {text}", file=sys.stderr, flush=True),
        resume=_RESUME_RANKS if arguments.command is _run else "",
        passes=(Preempted,),
    )


def _check_ranks(arguments: argparse.Namespace) -> None:
    """Refuse `torchrun` for the commands that one process carries out."""
    if n_ranks() > 1 and arguments.command is not _run:
        raise ValueError("only `crosscoders run` knows several ranks; start this command without torchrun.")


def _preemption(arguments: argparse.Namespace) -> AbstractContextManager[Any]:
    """SIGTERM as the command wants it: those that can be resumed have an exit code for it."""
    exit_code = getattr(arguments, "preempt_exit_code", None)
    return nullcontext() if exit_code is None else Preemption(exit_code=exit_code)


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
    shown = commands.add_parser("demo", help="the whole job on the bundled pair: train, verify, report")
    shown.add_argument("--out", default="runs/demo", help="run folder (default: %(default)s)")
    shown.add_argument("--seed", type=int, default=0, help="seed of the crosscoder (default: %(default)s)")
    shown.set_defaults(command=_demo)
    runner = commands.add_parser("run", help="train on your own pair and text; also under torchrun")
    runner.add_argument("config", nargs="?", type=Path, help="TOML file; see docs/run.md")
    runner.add_argument("--preset", choices=sorted(PRESETS), help="recipe to start from (default: none)")
    runner.add_argument("--base", help="folder or Hub id of the first model")
    runner.add_argument("--distilled", help="folder or Hub id of the second model")
    runner.add_argument("--text", help=".txt or .jsonl file")
    runner.add_argument("--out", help="run folder")
    runner.add_argument("--n-latents", type=int, help="dictionary size")
    runner.add_argument("--hook-name", help="TransformerLens hook in both models, or 'half'")
    runner.add_argument("--n-tokens", type=int, help="tokens of the text to train on")
    runner.add_argument("--seed", type=int, help="seed of everything random")
    runner.add_argument(
        "--resume",
        action="store_true",
        help="go on with the interrupted run in the folder; begin where there is none",
    )
    add_preempt_argument(runner)
    runner.add_argument("--warm-start", type=Path, help="folder of a saved crosscoder to begin with")
    runner.set_defaults(command=_run)
    planner = commands.add_parser("plan", help="what a run takes: memory, disk, hours; which placement fits")
    add_plan_arguments(planner)
    planner.set_defaults(command=_plan)
    sweeper = commands.add_parser("sweep", help="many crosscoders on one harvest, as a table and a figure")
    add_sweep_arguments(sweeper)
    sweeper.set_defaults(command=_sweep)
    keeper = commands.add_parser("store", help="activations of a run on disk: fill, verify, show")
    add_store_arguments(keeper)
    keeper.set_defaults(command=_store)
    physician = commands.add_parser("doctor", help="check this installation and this machine")
    add_doctor_arguments(physician)
    physician.set_defaults(command=_doctor)
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
    print(plan_command(arguments))
    return 0


_RUN_KEYS = ("preset", "base", "distilled", "text", "out", "n_latents", "hook_name", "seed")


def _run(arguments: argparse.Namespace) -> int:
    values = toml_values(arguments.config)
    values |= {key: value for key in _RUN_KEYS if (value := getattr(arguments, key)) is not None}
    if arguments.n_tokens is not None and isinstance(values.get("data", {}), Mapping):
        values["data"] = {**values.get("data", {}), "n_tokens": arguments.n_tokens}
    config = config_of(values, path=arguments.config)
    kind, shards = torch.device(config.device).type, config.system.latent_shards
    if shards > 1 and n_ranks() == 1:
        raise ValueError(
            f"run: system.latent_shards={shards} needs as many ranks; start it with `torchrun "
            f"--nproc-per-node={shards} -m crosscoders.cli run ...`."
        )
    mesh = from_torchrun(latent_shards=shards, device="cuda" if kind == "cuda" else "cpu")
    if mesh is None or is_main():
        print(run(config, resume=arguments.resume, warm_start=arguments.warm_start, mesh=mesh).summary())
    else:
        join_run(config, resume=arguments.resume, warm_start=arguments.warm_start, mesh=mesh)
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    print(sweep_command(arguments, say=lambda text: print(text, flush=True)))
    return 0


def _store(arguments: argparse.Namespace) -> int:
    print(store_command(arguments, say=lambda text: print(text, flush=True)))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    logging.getLogger("crosscoders").setLevel(logging.WARNING)  # what its self-tests announce
    text, exit_code = doctor_command(arguments)
    print(text)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
