"""Run a function on several ranks: one pool of worker processes that the whole test session shares."""

import atexit
import itertools
import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

_N_WORKERS = 4
_PRELOAD = ["pytest", "crosscoders.training.checkpoints.sharded", "tests.parallel.warm_up"]
_SECONDS = 400.0  # a call that takes longer hangs
_jobs = itertools.count()


def on_ranks(n: int, function: Callable[..., T], **kwargs: Any) -> list[T]:
    """Call `function(**kwargs)` on n ranks of a gloo world of their own; gives the results by rank.

    The function must be importable by name, and everything that goes in or out must pickle. A rank that
    raises fails the call with its traceback.

    Args:
        n: Number of ranks, at most 4.
        function: What each rank runs; `torch.distributed` is initialized with a world of n.
        **kwargs: Its arguments, the same on every rank.
    """
    if not 1 <= n <= _N_WORKERS:
        raise ValueError(f"on_ranks: n must be from 1 to {_N_WORKERS}, got {n}.")
    with tempfile.TemporaryDirectory() as folder:
        job = pickle.dumps((function, kwargs, n, os.path.join(folder, f"store-{next(_jobs)}")))
        for rank, (_, pipe) in enumerate(_workers()[:n]):
            pipe.send_bytes(pickle.dumps(rank))
            pipe.send_bytes(job)
        return _collect(n)


def _collect(n: int) -> list[Any]:
    pipes = [pipe for _, pipe in _workers()[:n]]
    results: dict[int, Any] = {}
    failures: list[str] = []
    while len(results) + len(failures) < n:
        pending = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = wait(pending, timeout=_SECONDS if not failures else 5.0)
        for pipe in ready:
            rank = pipes.index(pipe)  # type: ignore[arg-type]
            try:
                is_fine, value = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]
            except (EOFError, ConnectionError):
                is_fine, value = False, "the process died"
            if is_fine:
                results[rank] = value
            else:
                failures.append(f"rank {rank} of {n}: {value}")
        if failures or not ready:
            close_pool()
            raise RuntimeError("\n".join(failures) or f"on_ranks: no answer within {_SECONDS:g} s.")
    return [results[rank] for rank in range(n)]


@cache
def _workers() -> list[tuple[BaseProcess, Connection]]:
    """Start the pool: one process imports everything once, and the workers are forked from it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    workers: list[tuple[BaseProcess, Connection]] = []
    for _ in range(_N_WORKERS):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        workers.append((process, ours))
    atexit.register(close_pool)
    return workers


def close_pool() -> None:
    """End the workers; the next call starts new ones."""
    if _workers.cache_info().currsize == 0:
        return
    for process, pipe in _workers():
        pipe.close()
        process.kill()
        process.join()
    _workers.cache_clear()


def _serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            rank = pickle.loads(pipe.recv_bytes())
            job = pipe.recv_bytes()
        except (EOFError, ConnectionError):
            return
        try:
            answer = pickle.dumps((True, _run(rank, job)))
        except BaseException:
            answer = pickle.dumps((False, traceback.format_exc()))
        pipe.send_bytes(answer)


def _run(rank: int, job: bytes) -> Any:
    function, kwargs, n, path = pickle.loads(job)
    store = dist.FileStore(path, n)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=n, timeout=timedelta(seconds=60))
    try:
        return function(**kwargs)
    finally:
        dist.destroy_process_group()
