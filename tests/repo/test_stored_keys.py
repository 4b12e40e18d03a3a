"""What is written to disk has the keys and shapes that tests/stored_keys.txt records.

After a change that is meant: `python tests/repo/test_stored_keys.py --write`, a line in CHANGELOG.md, and a
format version where old files can no longer be read.
"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for `--write`, which runs without pytest

import crosscoders as cc
from crosscoders.activation_fns import base as activation_fns
from crosscoders.pipeline.config import LOSS_TERMS
from tests.repo import stored_keys

SNAPSHOT = Path(__file__).resolve().parents[1] / "stored_keys.txt"


def snapshot() -> str:
    """The whole text of tests/stored_keys.txt."""
    return "\n".join(stored_keys.key_lines()) + "\n"


def test_stored_keys_are_the_recorded_ones() -> None:
    assert snapshot() == SNAPSHOT.read_text(encoding="utf-8"), (
        "a key or shape on disk changed: run `python tests/repo/test_stored_keys.py --write`, read the "
        "difference, and say it in CHANGELOG.md under Unreleased"
    )


def test_every_shipped_activation_function_and_term_is_recorded() -> None:
    registry = activation_fns._registry.items()
    shipped = {kind for kind, cls in registry if cls.__module__.startswith("crosscoders.")}
    lines = stored_keys.key_lines()
    for kind in shipped:
        assert any(line.startswith(f"state_dict {kind}: ") for line in lines)
    for name in LOSS_TERMS:
        assert f"objective {name}: weight" in lines


def test_a_new_tensor_and_a_size_without_a_name_show() -> None:
    crosscoder = stored_keys.toy_crosscoder(cc.JumpReLU())
    axes = {key: stored_keys.axes_of(tensor) for key, tensor in crosscoder.state_dict().items()}
    assert axes["W_enc"] == axes["W_dec"] == "[latent width]"
    assert axes["activation.log_threshold"] == "[latent]"
    with pytest.raises(KeyError):
        stored_keys.axes_of(torch.zeros(9))


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/repo/test_stored_keys.py --write")
    SNAPSHOT.write_text(snapshot(), encoding="utf-8")
