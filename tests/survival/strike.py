"""Sends a signal to its own process at the n-th event inside a chosen part of the program.

An event is a call of a Python or C function or the return from one, as the interpreter's profiler reports
them; nothing of the program is replaced.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

# part -> (end of the file's path, function)
PARTS = {
    "loading": ("pipeline/pair.py", "load_pair"),
    "tokenizing": ("pipeline/corpus.py", "corpus_from_text"),
    "harvest": ("", "harvest"),
    "store": ("store/shard_filler.py", "_write"),
    "training": ("training/trainer.py", "training_step"),
    "checkpoint": ("training/checkpoints/files.py", "write_checkpoint"),
    "saving": ("crosscoder/module.py", "save_pretrained"),
    "measuring": ("pipeline/run.py", "measure_reconstruction"),
    "splicing": ("pipeline/run.py", "measure_splice"),
    "writing": ("pipeline/run.py", "_write"),
}


def count_events() -> dict[str, int]:
    """Count the events of each part from now on, in the mapping that is given back."""
    counts = dict.fromkeys(PARTS, 0)
    _follow(lambda part: counts.__setitem__(part, counts[part] + 1))
    return counts


def strike(part: str, event: int, *, number: int, record: Path) -> None:
    """Send this process a signal at an event of a part; `record` then holds the time.

    Args:
        part: One of `PARTS`.
        event: Which event of it, from 0.
        number: The signal.
        record: File to write first.
    """
    left = event

    def see(found: str) -> None:
        nonlocal left
        if found == part:
            left -= 1
            if left == -1:
                record.write_text(json.dumps({"part": part, "time": time.monotonic()}))
                os.kill(os.getpid(), number)
                signal.pthread_sigmask(signal.SIG_BLOCK, ())  # so that it is delivered here

    _follow(see)


def _follow(see: Any) -> None:
    inside: list[tuple[FrameType, str]] = []
    known: dict[CodeType, str | None] = {}

    def profile(frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        if code not in known:
            known[code] = _part_of(code)
        if event == "call" and known[code] is not None:
            inside.append((frame, known[code] or ""))
        elif event == "return" and inside and inside[-1][0] is frame:
            inside.pop()
        if inside:
            see(inside[-1][1])

    sys.setprofile(profile)


def _part_of(code: CodeType) -> str | None:
    for part, (file, function) in PARTS.items():
        if code.co_name == function and code.co_filename.endswith(file):
            return part
    return None
