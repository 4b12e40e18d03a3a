"""The parts of a plan as lines of text that say what disk, ranks and hours a run takes."""

from crosscoders._typing import typed
from crosscoders.pipeline.planning.data import DataBytes
from crosscoders.pipeline.planning.ranks import RankLayout
from crosscoders.pipeline.planning.time import TimeEstimate
from crosscoders.pipeline.sizes import shown_bytes
from crosscoders.report.tables import aligned


@typed
def data_lines(found: DataBytes) -> list[str]:
    """Disk: the store, kept or not, and the run folder, beside what is free.

    Args:
        found: What `data_bytes` counted.
    """
    whole = found.whole_store
    size = "as many as the text holds; set data.n_tokens" if whole is None else shown_bytes(whole)
    checkpoints = shown_bytes(found.n_checkpoints * found.checkpoint)
    rows = [
        ["Disk", "", ""],
        ["  a store, per token", shown_bytes(found.row), ""],
        ["  a store of the whole run, at most", size, "" if found.store else "not asked for"],
        [f"  {found.n_checkpoints} checkpoints", checkpoints, ""],
        ["  the saved crosscoder", shown_bytes(found.crosscoder), ""],
    ]
    lines = aligned(rows)
    for folder, need in found.needs().items():
        lines.append(_space(folder or ".", need, free=found.free[folder]))
    return [*lines, *_memory(found)]


def _space(folder: str, need: int | None, *, free: int) -> str:
    has = f"{shown_bytes(free)} free"
    if need is None:
        return f"  {folder}: {has}"
    missing = "" if need <= free else f": {shown_bytes(need - free)} MISSING"
    return f"  {folder}: needs {shown_bytes(need)}, {has}{missing}"


def _memory(found: DataBytes) -> list[str]:
    parts = {"token ids": found.token_ids, "batches in flight": found.in_flight}
    said = [f"{name} {shown_bytes(size)}" for name, size in parts.items() if size]
    return [f"CPU memory beside the buffer: {', '.join(said)}"] if said else []


@typed
def rank_lines(layout: RankLayout) -> list[str]:
    """How the run is split; nothing where it is not.

    Args:
        layout: Ranks.
    """
    if layout.n_ranks == 1:
        return []
    return [
        f"{layout.n_ranks} ranks: tokens over {layout.data_ranks}, latents over {layout.latent_shards}.",
        "Sizes are those of one rank, the fullest; a machine's CPU memory holds them once for each of its",
        "ranks.",
    ]


@typed
def time_lines(found: TimeEstimate, *, row: int) -> list[str]:
    """Hours, each assumption in a line of its own.

    Args:
        found: What `estimate_time` made.
        row: Bytes of one token in a store.
    """
    rate = found.trained_tokens / found.training
    rows = [
        ["Hours (estimate, not calibrated)", "", ""],
        ["  harvest", shown_hours(found.harvest), f"{found.harvested_tokens / found.harvest:,.0f} tokens/s"],
        ["  training", shown_hours(found.training), f"{rate:,.0f} tokens/s"],
        ["  together", shown_hours(found.total), ""],
    ]
    disk = f"a store keeps up with training where the disk reads {shown_bytes(round(rate * row))}/s"
    return [*aligned(rows), *(f"  - {said}" for said in (*found.assumptions, disk))]


@typed
def shown_hours(seconds: float) -> str:
    """A duration for people: hours with one decimal, below that minutes or seconds.

    Args:
        seconds: Any duration.
    """
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
