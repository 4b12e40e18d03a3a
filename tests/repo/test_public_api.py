"""The public surface is what tests/public_api.txt says.

After a change that is meant: `python tests/repo/test_public_api.py --write`, and a line in CHANGELOG.md.
"""

import inspect
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for `--write`, which runs without pytest

from tests.repo.public_api import (
    api_lines,
    has_something_to_check,
    is_typed,
    public_callables,
    public_modules,
)

# Not checked on purpose: they run inside a call that checks the same tensors, or in an inner loop.
UNCHECKED = {
    # compute_losses checks the pass and the context
    "LossTerm": {"value", "weight_at"},
    "HasThreshold": {"thresholds"},
    # Crosscoder.encode checks what goes in and what comes out
    "ActivationModule": {"forward", "set_progress", "track", "calibration_score", "calibrate"},
    # steps of fit; the crosscoder checks each batch, and observers get what the trainer made
    "Trainer": {"training_step", "compute_losses"},
    "Callback": {
        *("on_fit_start", "on_step_end", "on_evaluate", "on_checkpoint", "on_exception", "on_fit_end"),
        "load_state_dict",
    },
    # a logger's own errors must not end a run; `Logger` hands it what the trainer made
    "Logger": {"start", "write"},
    # called by hooks, in every forward
    "TokenTrace": {"read", "positions", "is_after", "is_token"},
    # read in every reduction over sparse latents
    "SparseLatents": {"rows", "to_dense"},
}
SNAPSHOT = Path(__file__).resolve().parents[1] / "public_api.txt"


def snapshot() -> str:
    """The whole text of tests/public_api.txt."""
    return "\n".join(api_lines()) + "\n"


def test_public_surface_is_the_recorded_one() -> None:
    assert snapshot() == SNAPSHOT.read_text(encoding="utf-8"), (
        "the public surface changed: run `python tests/repo/test_public_api.py --write`, read the "
        "difference, and say it in CHANGELOG.md under Unreleased"
    )


@pytest.mark.parametrize("name", sorted(public_modules()))
def test_all_is_sorted_and_complete(name: str) -> None:
    module = public_modules()[name]
    assert len(set(module.__all__)) == len(module.__all__)
    assert [n for n in module.__all__ if not hasattr(module, n)] == []


def is_left_unchecked(name: str) -> bool:
    """Whether UNCHECKED names this method, for its class or for a base of it."""
    owner, _, method = name.rpartition(".")
    module, _, class_name = owner.rpartition(".")
    cls = getattr(public_modules().get(module), class_name, object)
    bases = {base.__name__ for base in getattr(cls, "__mro__", ())}
    return any(method in UNCHECKED[base] for base in bases & UNCHECKED.keys())


def test_public_callables_are_typed() -> None:
    untyped = {
        name
        for name, fn in public_callables().items()
        if has_something_to_check(fn) and not is_typed(fn) and not is_left_unchecked(name)
    }
    assert sorted(untyped) == []


def test_public_things_have_docstrings() -> None:
    named = dict(public_callables())
    for module_name, module in public_modules().items():
        named |= {f"{module_name}.{n}": getattr(module, n) for n in module.__all__}
    silent = [
        name
        for name, value in named.items()
        if (inspect.isclass(value) or callable(value)) and not (value.__doc__ or "").strip()
    ]
    assert sorted(silent) == []


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/repo/test_public_api.py --write")
    SNAPSHOT.write_text(snapshot(), encoding="utf-8")
