"""Arguments that several commands share."""

import argparse

from crosscoders._typing import typed
from crosscoders.training.preemption import EXIT_CODE


@typed
def add_preempt_argument(parser: argparse.ArgumentParser) -> None:
    """Declare `--preempt-exit-code`; a command that has it saves at SIGTERM and ends with that status.

    Args:
        parser: The command's parser.
    """
    parser.add_argument(
        "--preempt-exit-code",
        type=int,
        default=EXIT_CODE,
        metavar="N",
        help="exit status after SIGTERM, which saves first (default: %(default)s)",
    )
