"""One clear message when a run on several ranks fails, whichever rank it was and however it died."""

import contextlib
import importlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, final

import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.distributed_c10d import PrefixStore, Store

from crosscoders._typing import typed

_SPEAKERS = "speakers"
_GRACE_SECONDS = 3.0  # for a rank that raised to say so, before another takes it for dead
_CERTAIN_SECONDS = 0.3  # the same where the system says that a rank is gone
_LAST_SECONDS = 10.0  # a process that hangs while it ends, as communicators may, is cut off after this
_BROKEN = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket timeout", re.IGNORECASE)


@final
class Board:
    """Where the ranks of one run leave word for each other: who they are, who left, and who has spoken.

    Args:
        store: A store that all ranks reach and that outlives any of them.
        rank: This process.
        size: Number of processes.
        seconds_to_end: A process that failed is ended after this time; None leaves it to end by itself.
    """

    def __init__(self, store: Store, rank: int, *, size: int, seconds_to_end: float | None = None) -> None:
        self._store = store
        self.rank = rank
        self.size = size
        self.seconds_to_end = seconds_to_end
        store.set(f"process-{rank}", f"{os.getpid()} {socket.gethostname()}")

    def leave(self) -> None:
        """Say that this rank ends as it should."""
        self._store.set(f"left-{self.rank}", "yes")

    def is_first(self) -> bool:
        """Whether nobody has asked before: one rank of all gets True."""
        return self._store.add(_SPEAKERS, 1) == 1

    def has_speaker(self) -> bool:
        """Whether some rank has said, or is about to say, why the run ends."""
        return self._store.check([_SPEAKERS])

    def gone(self) -> list[str]:
        """Ranks of this machine whose process ended without leaving, in words."""
        found = []
        for rank in set(range(self.size)) - {self.rank}:
            if self._store.check([f"process-{rank}"]) and not self._store.check([f"left-{rank}"]):
                pid, host = self._store.get(f"process-{rank}").decode().split(" ", 1)
                if host == socket.gethostname() and not _is_alive(int(pid)):
                    found.append(f"rank {rank} (process {pid} on {host})")
        return sorted(found)


class _Stopped(BaseException):
    """SIGTERM reached a rank that had no handler of its own."""


@contextlib.contextmanager
@typed
def one_clear_message(
    say: Callable[[str], object],
    *,
    resume: str,
    passes: tuple[type[BaseException], ...] = (),
    board: Board | None = None,
) -> Iterator[None]:
    """Around the work of one rank: if the run fails, one rank of all says why and the others end in silence.

    An exception is told by the rank that raised it; the others only see broken collectives. A rank that died
    without a word (SIGKILL, out of memory) is told by a survivor. Under `torchrun` the ranks agree through
    its store; with one process, or started otherwise, nothing is changed.

    Args:
        say: Called with one line, by one rank.
        resume: A sentence that says how to go on, which ends the line; empty where nothing can.
        passes: Exceptions that end a run as they should, such as a preemption; they pass if no rank failed.
        board: Where the ranks meet; None for the store of `torchrun`.

    Yields:
        Nothing; the work stands inside.

    Raises:
        SystemExit: The run failed; status 1 on every rank.
    """
    board = board or _board_of_torchrun()
    if board is None:
        yield
        return
    before = _raise_when_stopped()
    try:
        yield
        board.leave()
    except BaseException as err:
        _ignore_stops()
        ends_well = isinstance(err, passes) or (isinstance(err, SystemExit) and err.code in (None, 0))
        if ends_well and not board.has_speaker() and not board.gone():
            board.leave()
            raise
        is_own = not (ends_well or isinstance(err, _Stopped) or _is_broken_collective(err))
        _tell(err, board, is_own=is_own, say=say, resume=resume)
        raise SystemExit(1) from err
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _tell(
    err: BaseException, board: Board, *, is_own: bool, say: Callable[[str], object], resume: str
) -> None:
    """Say why the run ends, if this rank is the one to say it; `is_own`: its own error ends the run."""
    if board.seconds_to_end is not None:
        timer = threading.Timer(board.seconds_to_end, os._exit, (1,))
        timer.daemon = True
        timer.start()
    gone = [] if is_own else _wait_for_a_speaker(board)
    if (not is_own and board.has_speaker()) or not board.is_first():
        return
    if is_own:
        _record(err)
    say(f"{_reason(err, gone, board, is_own=is_own)} The run has ended. {resume}".rstrip())


def _reason(err: BaseException, gone: list[str], board: Board, *, is_own: bool) -> str:
    who = f"rank {board.rank} of {board.size}"
    words = " ".join(str(err).split())
    if is_own:
        return f"{who} failed: {type(err).__name__}: {words}".rstrip(". ") + "."
    if gone:
        verb = "died without a word: killed from outside, or by the system for lack of memory."
        return f"{' and '.join(gone)} of {board.size} {verb}"
    if isinstance(err, _Stopped):
        return f"{who} was told to stop (SIGTERM) and no rank says why: the job was stopped from outside."
    said = f"{who} lost touch with the others, of which none says why; it saw: {words[:200]}"
    return said.rstrip(". ") + "."


def _wait_for_a_speaker(board: Board) -> list[str]:
    """Give a rank that raised time to say so; gives the ranks that are gone if none does."""
    start = time.monotonic()
    gone: list[str] = []
    while not board.has_speaker() and time.monotonic() - start < _GRACE_SECONDS:
        gone = board.gone()
        if gone and time.monotonic() - start > _CERTAIN_SECONDS:
            break
        time.sleep(0.05)
    return gone


def _is_broken_collective(err: BaseException) -> bool:
    """Whether the ranks lost touch, which another rank's failure brings about."""
    link: BaseException | None = err
    while link is not None:
        if isinstance(link, dist.DistError):
            return True
        if isinstance(link, RuntimeError) and (_BROKEN.search(str(link)) or _comes_from_torch(link)):
            return True
        link = link.__cause__
    return False


def _comes_from_torch(err: BaseException) -> bool:
    """Whether PyTorch's distributed package raised it."""
    home, frames = str(Path(dist.__file__).parent), err.__traceback__
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    return frames is not None and frames.tb_frame.f_code.co_filename.startswith(home)


def _record(err: BaseException) -> None:
    """Leave the whole traceback with `torchrun`, whose own report then shows it."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        errors = importlib.import_module("torch.distributed.elastic.multiprocessing.errors")
        errors.get_error_handler().record_exception(err)


def _board_of_torchrun() -> Board | None:
    """The store that the launcher keeps, which outlives the ranks; None for one process or none of its."""
    env = os.environ
    if int(env.get("WORLD_SIZE", "1")) < 2 or env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    store = TCPStore(address, port, timeout=timedelta(seconds=30), wait_for_workers=False)
    attempt = f"crosscoders/failure/{env.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    return Board(
        PrefixStore(attempt, store),
        int(env["RANK"]),
        size=int(env["WORLD_SIZE"]),
        seconds_to_end=_LAST_SECONDS,
    )


def _raise_when_stopped() -> Any:
    """Turn SIGTERM into an exception if nobody else handles it; gives the handler to put back, or None."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return None

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped

    return signal.signal(signal.SIGTERM, stop)


def _ignore_stops() -> None:
    """The launcher stops the survivors at once; they still have something to say."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that ended and was not yet waited for does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:
        return True  # no /proc here, or another user's process
