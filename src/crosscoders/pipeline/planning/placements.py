"""The ways to place two models beside the crosscoder that trains on them, each judged by what it needs."""

import dataclasses

from crosscoders._typing import typed
from crosscoders.pipeline.planning.result import HOST, Placement, Plan


@typed
def placements(found: Plan, *, overlap: str, n_devices: int) -> tuple[Placement, ...]:
    """Judge every placement, the one that serves the run best first.

    Args:
        found: The plan, its placements still missing.
        overlap: The run's `system.overlap`: harvesting in the background needs its memory beside a step's,
            and a process of its own holds the models once more.
        n_devices: CUDA devices that one process may use.
    """
    truncated = [
        _placement(found, "both truncated", overlap=overlap),
        _placement(found, "one after the other", overlap=overlap, is_offloaded=True),
    ]
    apart = [
        _placement(_moved(found, places), name, overlap="process" if overlap == "none" else overlap)
        for name, places in _elsewhere(found, n_devices=n_devices).items()
    ]
    whole = "both whole, spliced" if found.workspace.splicing else "both whole"
    last = _placement(found, whole, overlap=overlap, size="whole")
    if found.workspace.splicing:
        return (last, *apart, *truncated)
    # Nothing asks for whole models then: a run reads them truncated.
    return (*apart, *truncated, last)


def _elsewhere(found: Plan, *, n_devices: int) -> dict[str, list[str]]:
    """Devices of the models by placement, where the crosscoder has the first CUDA device."""
    if found.device != "cuda:0" or n_devices < 2:
        return {}
    second = {"models on a second device": ["cuda:1"] * len(found.models)}
    if n_devices <= len(found.models):
        return second
    return second | {"a device for each model": [f"cuda:{1 + at}" for at in range(len(found.models))]}


def _moved(found: Plan, places: list[str]) -> Plan:
    named = zip(found.models.items(), places, strict=True)
    models = {name: dataclasses.replace(model, device=place) for (name, model), place in named}
    return dataclasses.replace(found, models=models)


def _placement(
    found: Plan, name: str, *, overlap: str, size: str = "truncated", is_offloaded: bool = False
) -> Placement:
    stays = _stays(found, size=size, is_offloaded=is_offloaded, is_twice=overlap == "process")
    moments = _moments(found, overlap=overlap, size=size, is_offloaded=is_offloaded)
    needs = {at: stays.get(at, 0) + moments.get(at, 0) for at in sorted(stays.keys() | moments.keys())}
    judged = [at for at in needs if at != HOST] or [HOST]
    headroom = min(found.vram_bytes - _kept_free(found, at, overlap=overlap) - needs[at] for at in judged)
    return Placement(name=name, needs=needs, fits=headroom >= 0, headroom=headroom)


def _stays(found: Plan, *, size: str, is_offloaded: bool, is_twice: bool) -> dict[str, int]:
    """Bytes by device that are held all the time; `is_twice`: another process loads the models too."""
    stays = {HOST: found.buffer_bytes + found.data.token_ids + found.data.in_flight}
    stays[found.device] = stays.get(found.device, 0) + found.training.total
    for model in found.models.values():
        home = HOST if is_offloaded or model.is_offloaded else model.device
        stays[home] = stays.get(home, 0) + getattr(model, size) + is_twice * model.truncated
    return stays


def _moments(found: Plan, *, overlap: str, size: str, is_offloaded: bool) -> dict[str, int]:
    """Bytes by device that are needed for a moment: of harvest, step and measuring, or of two at once."""
    workspace, reading = found.workspace, dict[str, int]()
    for source, model in found.models.items():
        moment = max(workspace.reading[source], workspace.splicing.get(source, 0) if size == "whole" else 0)
        is_moved = (is_offloaded or model.is_offloaded) and model.device != HOST
        moment += getattr(model, size) if is_moved else 0
        reading[model.device] = max(reading.get(model.device, 0), moment)
    own = max(workspace.assembling, reading.get(found.device, 0))
    step = own + workspace.training if overlap != "none" else max(own, workspace.training)
    return reading | {found.device: max(step, workspace.measuring)}


def _kept_free(found: Plan, device: str, *, overlap: str) -> int:
    """Two processes on one GPU, which both hold the models, have a context each."""
    if device == HOST:
        return 0
    is_shared = device in {model.device for model in found.models.values()}
    return found.reserve_bytes * (2 if overlap == "process" and is_shared else 1)
