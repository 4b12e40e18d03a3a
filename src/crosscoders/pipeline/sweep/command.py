"""`crosscoders sweep CONFIG`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from crosscoders._typing import typed
from crosscoders.pipeline.arguments import add_preempt_argument
from crosscoders.pipeline.sweep.member import FINISHED
from crosscoders.pipeline.sweep.sweep import Sweep


@typed
def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `crosscoders sweep`.

    Args:
        parser: The command's parser.
    """
    parser.add_argument("config", type=Path, help="TOML file of a run with a table [sweep]: docs/sweep.md")
    parser.add_argument("--out", help="folder of the sweep (default: the one in the file)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="train only what has not ended in the sweep's folder; begin where there is none",
    )
    add_preempt_argument(parser)


@typed
def sweep_command(arguments: argparse.Namespace, *, say: Callable[[str], object] = lambda text: None) -> str:
    """Do what `crosscoders sweep` asks.

    Args:
        arguments: As `add_sweep_arguments` declares them.
        say: Told what happens while it happens.

    Returns:
        What to print at the end.

    Raises:
        ValueError: As for `Sweep`, or no member finished.
        OSError: As for `Sweep.run`.
    """
    sweep = Sweep.from_toml(arguments.config, out=arguments.out)
    result = sweep.run(resume=arguments.resume, say=say)
    if not any(each.outcome.state == FINISHED for each in result.members):
        raise ValueError(f"sweep: no member finished.\n{result.summary()}")
    return f"{result.summary()}\n\nThe table, the figure and every crosscoder lie in {result.out}."
