"""Batches of whole sequences, and their blocks."""

import pytest
import torch

from crosscoders.diffing.batches import MeasureBatch, block_of, cut_batches


def test_cutting_loses_no_row_and_splits_no_sequence(generator: torch.Generator) -> None:
    lengths = torch.randint(1, 30, (50,), generator=generator)
    sequence = torch.arange(50).repeat_interleave(lengths)
    rows = torch.randn(len(sequence), 3, generator=generator)
    batches = list(cut_batches(rows, sequence, batch_tokens=64))
    assert torch.equal(torch.cat([b.rows for b in batches]), rows)
    assert torch.equal(torch.cat([b.sequence for b in batches]), sequence)
    seen = [set(b.sequence.tolist()) for b in batches]
    assert sum(len(s) for s in seen) == 50
    assert all(len(b.rows) >= 64 for b in batches[:-1])
    assert len(batches) > 5


def test_rows_of_one_sequence_share_a_block() -> None:
    assert block_of(torch.tensor([0, 0, 19, 20, 41])).tolist() == [0, 0, 19, 0, 1]
    assert block_of(torch.tensor([5, 6]), 2).tolist() == [1, 0]


def test_scattered_sequences_and_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 sequences lie in 3 pieces"):
        cut_batches(torch.zeros(3, 2), torch.tensor([0, 1, 0]))
    with pytest.raises((ValueError, TypeError), match="sequence"):
        MeasureBatch(rows=torch.zeros(3, 2), sequence=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="integers from 0"):
        MeasureBatch(rows=torch.zeros(1, 2), sequence=torch.tensor([-1]))
    with pytest.raises(ValueError, match="at least 2 blocks"):
        block_of(torch.tensor([0]), 1)
