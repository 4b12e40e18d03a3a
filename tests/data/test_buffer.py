"""Laws of the activation buffer: every row once, in an order that a few integers describe."""

import itertools
import json
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from crosscoders.buffer import ActivationBuffer
from crosscoders.harvest import load_sources
from tests.data.toy_harvester import ToyHarvester, served_ids, toy_batches, toy_buffer
from tests.data.toy_models import random_tokens, toy_model

ALL = [1000 * s + p for s in range(20) for p in range(7)]


class Restartable:
    """Token batches that start anew on each iteration but have no length."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def rows_of(buffer: ActivationBuffer) -> list[Tensor]:
    return list(buffer)


@settings(max_examples=60, deadline=None)
@given(
    n_sequences=st.integers(2, 25),
    length=st.integers(1, 9),
    per_batch=st.integers(1, 6),
    batch_tokens=st.integers(1, 9),
    windows=st.integers(1, 4),
    epochs=st.integers(1, 3),
    skip=st.integers(0, 2),
)
def test_every_row_is_served_exactly_once_per_epoch(
    n_sequences: int, length: int, per_batch: int, batch_tokens: int, windows: int, epochs: int, skip: int
) -> None:
    batches = toy_batches(n_sequences=n_sequences, length=length, per_batch=per_batch)
    excluded = (1000, 1001)
    expected = sorted(i for b in batches for i in b[:, skip:].flatten().tolist() if i not in excluded)
    if len(expected) < batch_tokens:
        return
    max_bytes = batches[0].numel() * 16 + windows * batch_tokens * 24
    buffer = toy_buffer(
        batches,
        max_bytes=max_bytes,
        batch_tokens=batch_tokens,
        epochs=epochs,
        skip_positions=skip,
        exclude_token_ids=excluded,
    )
    served = rows_of(buffer)
    assert Counter(served_ids(served)) == Counter(expected * epochs)
    assert buffer.tokens_served == buffer.n_tokens == epochs * len(expected)
    assert buffer.unique_tokens_served == len(expected)
    per_epoch = -(-len(expected) // batch_tokens)
    sizes = [len(batch) for batch in served]
    assert len(sizes) == epochs * per_epoch  # only the last batch of an epoch is short
    assert all(size == batch_tokens for i, size in enumerate(sizes) if (i + 1) % per_epoch)


def test_rows_are_shuffled_within_windows_and_windows_come_in_order() -> None:
    served = served_ids(toy_buffer())
    window_rows = toy_buffer()._window_rows
    windows = [served[i : i + window_rows] for i in range(0, len(served), window_rows)]
    assert len(windows) > 2
    for i, window in enumerate(windows):
        assert sorted(window) == ALL[i * window_rows : (i + 1) * window_rows]
        assert window != sorted(window)


def test_the_seed_decides_the_order_and_never_the_rows() -> None:
    one, same, other = (served_ids(toy_buffer(seed=seed)) for seed in (0, 0, 1))
    assert one == same
    assert one != other
    assert sorted(one) == sorted(other) == ALL


def test_epochs_and_windows_are_shuffled_differently() -> None:
    served = served_ids(toy_buffer(epochs=2))
    assert served[: len(ALL)] != served[len(ALL) :]
    positions = [[ALL.index(i) % 32 for i in served[w : w + 32]] for w in (0, 32)]
    assert positions[0] != positions[1]


def test_the_order_is_drawn_from_the_generator_once() -> None:
    generator = torch.Generator().manual_seed(0)
    buffer = ActivationBuffer(
        ToyHarvester(),
        toy_batches(),
        max_bytes=1200,
        batch_tokens=8,
        generator=generator,
        dtype=torch.float32,
    )
    torch.rand(5, generator=generator)
    assert served_ids(buffer) == served_ids(toy_buffer(seed=0))


@pytest.mark.parametrize("restartable", [list, Restartable])
@pytest.mark.parametrize("outliers", [(), (0, 3, 2004, 3000, 9001, 19006)])
def test_resuming_anywhere_equals_no_interruption(restartable: type, outliers: tuple[int, ...]) -> None:
    def fresh(seed: int) -> ActivationBuffer:
        multiple = 5.0 if outliers else None
        batches = [b * 1 for b in toy_batches()]
        harvester = ToyHarvester(outliers=outliers)
        return toy_buffer(
            restartable(batches), seed=seed, epochs=3, max_norm_multiple=multiple, harvester=harvester
        )

    whole = fresh(0)
    batches, counters, states = [], [], [whole.state_dict()]
    for batch in whole:
        batches.append(batch)
        states.append(whole.state_dict())
        counters.append((whole.tokens_served, whole.unique_tokens_served, whole.n_dropped_outliers))
    scales = [source.scale for source in whole.sources]
    for taken, state in enumerate(states):
        resumed = fresh(99)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        rest = []
        for batch in resumed:
            rest.append(batch)
            counter = (resumed.tokens_served, resumed.unique_tokens_served, resumed.n_dropped_outliers)
            assert counter == counters[taken + len(rest) - 1]
        assert len(rest) == len(batches) - taken
        assert all(torch.equal(a, b) for a, b in zip(rest, batches[taken:]))
        assert [source.scale for source in resumed.sources] == scales


def test_taking_a_state_changes_nothing() -> None:
    buffer, undisturbed = toy_buffer(epochs=2), toy_buffer(epochs=2)
    for a, b in zip(buffer, undisturbed, strict=True):
        buffer.state_dict()
        buffer.sources  # noqa: B018
        buffer.n_tokens  # noqa: B018
        assert torch.equal(a, b)


def test_resuming_a_used_buffer_goes_back() -> None:
    buffer = toy_buffer()
    state = buffer.state_dict()
    whole = served_ids(buffer)
    buffer.load_state_dict(state)
    assert served_ids(buffer) == whole


def test_the_end_of_the_data_ends_iteration_for_good() -> None:
    buffer = toy_buffer()
    assert len(list(itertools.islice(buffer, 5))) == 5
    assert sum(len(batch) for batch in buffer) == len(ALL) - 40  # a second loop goes on
    with pytest.raises(RuntimeError, match=r"all 1 epochs were served \(140 rows\)"):
        iter(buffer)


def test_one_shot_iterators_serve_one_epoch_and_no_more() -> None:
    assert sorted(served_ids(toy_buffer(iter(toy_batches())))) == ALL
    assert toy_buffer(iter(toy_batches())).n_tokens is None
    with pytest.raises(ValueError, match="epochs > 1 needs token_batches that can be read again"):
        toy_buffer(iter(toy_batches()), epochs=2)
    buffer = toy_buffer(iter(toy_batches()))
    with pytest.raises(ValueError, match="load_state_dict needs token_batches that can be read again"):
        buffer.load_state_dict(buffer.state_dict())


def test_a_refill_that_would_read_nothing_raises() -> None:
    class Once(Restartable):
        def __iter__(self):
            given, self.batches = self.batches, []
            return iter(given)

    buffer = toy_buffer(Once(toy_batches()), epochs=2)
    with pytest.raises(ValueError, match="epoch 1 would serve no rows"):
        list(buffer)
    with pytest.raises(ValueError, match="kept nothing"):
        list(toy_buffer(skip_positions=7))
    with pytest.raises(ValueError, match="token_batches is empty"):
        toy_buffer([])


def test_a_stream_shorter_than_one_batch_raises() -> None:
    with pytest.raises(ValueError, match="ended after 140 usable rows, less than one batch of 141"):
        list(toy_buffer(batch_tokens=141, max_bytes=1 << 20))
    assert len(list(toy_buffer(batch_tokens=140, max_bytes=1 << 20))) == 1


def test_excluded_ids_and_leading_positions_never_appear() -> None:
    excluded = [3004, 5005, 19006]
    served = served_ids(toy_buffer(exclude_token_ids=excluded, skip_positions=2))
    assert sorted(served) == [i for i in ALL if i not in excluded and i % 1000 >= 2]


def test_batches_without_usable_tokens_are_not_harvested() -> None:
    harvester = ToyHarvester()
    padding = torch.full((3, 7), 99_999)
    batches = [batch for b in toy_batches() for batch in (padding, b, padding)]
    assert sorted(served_ids(toy_buffer(batches, harvester=harvester, exclude_token_ids=[99_999]))) == ALL
    assert harvester.calls == len(toy_batches())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_held_memory_stays_within_the_limit(dtype: torch.dtype) -> None:
    max_bytes, largest = 2000, 0
    buffer = toy_buffer(max_bytes=max_bytes, dtype=dtype, epochs=2, max_norm_multiple=4.0)
    for _ in buffer:
        tensors = [
            t for owner in (buffer, buffer._stream) for t in vars(owner).values() if isinstance(t, Tensor)
        ]
        held = sum(t.untyped_storage().nbytes() for t in tensors)
        largest = max(largest, held)
        assert buffer.held_bytes <= held <= max_bytes
    assert largest > max_bytes // 2


def test_too_little_memory_raises_with_the_bytes_needed() -> None:
    needed = 21 * 16 + 8 * (16 + 8)
    with pytest.raises(ValueError, match=f"max_bytes={needed - 1} is too small.* need {needed} bytes"):
        toy_buffer(max_bytes=needed - 1)
    assert sorted(served_ids(toy_buffer(max_bytes=needed))) == ALL


def test_a_larger_batch_than_memory_was_set_aside_for_raises() -> None:
    batches = [toy_batches(per_batch=3)[0], torch.cat(toy_batches()[1:3])]
    with pytest.raises(ValueError, match="token batch 1 has 42 tokens, more than the first one's 21"):
        list(toy_buffer(Restartable(batches)))
    assert len(served_ids(toy_buffer(batches))) == 63


def test_outliers_are_dropped_counted_and_the_same_in_every_epoch() -> None:
    outliers = (0, 2004, 3000, 9001, 19006)
    for per_batch, max_bytes in itertools.product((1, 3, 20), (2600, 3000, 9000)):
        buffer = toy_buffer(
            toy_batches(per_batch=per_batch),
            harvester=ToyHarvester(outliers=outliers),
            max_norm_multiple=50.0,
            epochs=2,
            max_bytes=max_bytes,
        )
        assert Counter(served_ids(buffer)) == Counter([i for i in ALL if i not in outliers] * 2)
        assert buffer.n_dropped_outliers == 2 * len(outliers)
        assert buffer.n_tokens is None


def test_outliers_after_the_last_kept_row_are_counted_in_every_epoch() -> None:
    buffer = toy_buffer(
        toy_batches(per_batch=1),
        harvester=ToyHarvester(outliers=range(19_000, 19_007)),
        max_norm_multiple=50.0,
        epochs=3,
        batch_tokens=7,
        max_bytes=7 * 16 + 7 * 24,
    )
    assert len(served_ids(buffer)) == 3 * 133
    assert buffer.n_dropped_outliers == 3 * 7


def test_outlier_limits_are_a_multiple_of_the_first_windows_median_norm() -> None:
    buffer = toy_buffer(max_norm_multiple=3.0, max_bytes=1 << 20)
    rows = torch.cat([ToyHarvester().harvest(tokens).flatten(0, 1) for tokens in toy_batches()])
    norms = torch.stack([rows[:, :3].norm(dim=1), rows[:, 3:].norm(dim=1)], dim=1)
    limits = 3.0 * norms.median(dim=0).values
    expected = int((norms <= limits).all(dim=1).sum())
    assert sum(len(batch) for batch in buffer) == expected
    assert buffer.n_dropped_outliers == 140 - expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("multiple", [None, 2.0])
def test_scales_come_from_the_rows_served_in_the_first_window(
    dtype: torch.dtype, multiple: float | None
) -> None:
    buffer = toy_buffer(dtype=dtype, max_norm_multiple=multiple, skip_positions=1)
    sources = buffer.sources
    first = torch.cat(list(itertools.islice(buffer, buffer._window_rows // 8))).double()
    for source, columns in zip(sources, (first[:, :3], first[:, 3:])):
        assert source.scale == pytest.approx(
            source.d_model**0.5 / columns.norm(dim=1).mean().item(), rel=1e-6
        )
    assert [s.scale for s in buffer.sources] == [s.scale for s in sources]


def test_reading_the_sources_first_loses_no_rows() -> None:
    harvester = ToyHarvester()
    buffer = toy_buffer(harvester=harvester)
    buffer.sources  # noqa: B018
    assert buffer.tokens_served == 0
    assert sorted(served_ids(buffer)) == ALL
    assert harvester.calls == len(toy_batches())


def test_each_token_batch_is_harvested_once_per_epoch() -> None:
    harvester = ToyHarvester()
    list(toy_buffer(harvester=harvester, epochs=2))
    assert harvester.calls == 2 * len(toy_batches())


def test_bfloat16_rows_are_the_rounded_live_rows() -> None:
    models = load_sources({"base": toy_model(), "distilled": toy_model(d_model=32, seed=1)})
    tokens = random_tokens(6, 5)
    generator = torch.Generator().manual_seed(0)
    buffer = ActivationBuffer(models, tokens.split(2), max_bytes=1 << 20, generator=generator, batch_tokens=7)
    served = torch.cat(list(buffer))
    live = torch.cat([models.harvest(part).flatten(0, 1) for part in tokens.split(2)]).bfloat16().float()
    assert served.dtype == torch.float32
    assert_close(served.sort(dim=0).values, live.sort(dim=0).values, rtol=0, atol=0)
    assert {tuple(row.tolist()) for row in served} == {tuple(row.tolist()) for row in live}


@pytest.mark.parametrize("failing_call", range(7))
def test_a_failed_harvest_can_be_tried_again(failing_call: int) -> None:
    class Flaky(ToyHarvester):
        has_failed = False

        def harvest(self, tokens: Tensor) -> Tensor:
            if self.calls == failing_call and not self.has_failed:
                self.has_failed = True
                raise OSError("device lost")
            return super().harvest(tokens)

    buffer = toy_buffer(harvester=Flaky())
    served: list[Tensor] = []
    with pytest.raises(OSError, match="device lost"):
        served.extend(buffer)
    served.extend(buffer)
    assert sorted(served_ids(served)) == ALL


def test_a_failed_harvest_of_a_one_shot_iterator_never_skips_rows() -> None:
    class Broken(ToyHarvester):
        def harvest(self, tokens: Tensor) -> Tensor:
            raise OSError("device lost")

    buffer = toy_buffer(iter(toy_batches()), harvester=Broken())
    with pytest.raises(OSError, match="device lost"):
        next(buffer)
    with pytest.raises(ValueError, match="one-shot iterator and cannot be read again"):
        next(buffer)


def test_a_state_between_windows_harvests_no_served_window_again() -> None:
    buffer = toy_buffer()
    n_first = sum(len(batch) for batch in itertools.islice(buffer, buffer._window_rows // 8))
    harvester = ToyHarvester()
    resumed = toy_buffer(harvester=harvester)
    resumed.load_state_dict(buffer.state_dict())
    assert len(served_ids(resumed)) == 140 - n_first
    assert harvester.calls == sum(21 * (i + 1) > n_first for i in range(len(toy_batches())))


def test_a_state_of_other_data_or_settings_raises() -> None:
    state = toy_buffer().state_dict()
    with pytest.raises(ValueError, match=r"settings differ .*'skip_positions': \(0, 1\)"):
        toy_buffer(skip_positions=1).load_state_dict(state)
    with pytest.raises(ValueError, match="first token batch is not that of the stored run"):
        toy_buffer([b + 1 for b in toy_batches()]).load_state_dict(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_tokens": 0}, "batch_tokens must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"skip_positions": -1}, "skip_positions must be at least 0"),
        ({"dtype": torch.int64}, "dtype floating"),
        ({"max_norm_multiple": 0.5}, "max_norm_multiple must exceed 1"),
    ],
)
def test_settings_out_of_range_raise(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy_buffer(**changes)


def test_token_batches_of_other_kinds_raise() -> None:
    with pytest.raises(
        ValueError, match=r"token batch 0 must be integer ids \[batch, pos\], got torch.float32"
    ):
        list(toy_buffer(Restartable([torch.ones(3, 7)])))


def test_ids_that_the_harvester_excludes_are_never_served() -> None:
    harvester = ToyHarvester()
    harvester.exclude_token_ids = (2003, 5000)  # as ModelSources with an id policy has them
    buffer = toy_buffer(harvester=harvester, exclude_token_ids=(5000, 1001))
    expected = [index for index in ALL if index not in (1001, 2003, 5000)]
    assert sorted(served_ids(rows_of(buffer))) == expected
    assert buffer.n_tokens == len(expected)
    assert buffer.state_dict()["settings"]["exclude_token_ids"] == [1001, 2003, 5000]
