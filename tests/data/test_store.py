"""Laws of the activation store: the same rows in the same order from models, from disk, and from both."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crosscoders.errors import CheckpointError
from crosscoders.store import ActivationStore
from tests.data.toy_harvester import ToyHarvester, toy_batches, toy_buffer
from tests.data.toy_store import (
    ROW_BYTES,
    Restartable,
    assert_same_course,
    buffer_from,
    course,
    filled_store,
    store_files,
    toy_store,
)

# What the harvest does, and how it is cut: token batches of 3 sequences, 1, or all 20 at once.
COURSES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"epochs": 3, "exclude_token_ids": (3004, 5005, 19006), "skip_positions": 2}, {}),
    ({"epochs": 2, "max_norm_multiple": 5.0, "max_bytes": 3000}, {"per_batch": 1}),
    ({"epochs": 2, "max_norm_multiple": 50.0, "skip_positions": 1, "dtype": torch.bfloat16}, {}),
    ({"epochs": 2, "max_bytes": 9000}, {"per_batch": 20}),
    ({"epochs": 2, "exclude_token_ids": tuple(range(3000, 6007))}, {"per_batch": 1}),  # batches without rows
]
OUTLIERS = (0, 3, 2004, 3000, 9001, 19006)


def store_settings(settings: dict[str, Any]) -> dict[str, Any]:
    harvest = {k: v for k, v in settings.items() if k in ("dtype", "exclude_token_ids", "skip_positions")}
    return {"dtype": torch.float32, **harvest}


@pytest.mark.parametrize(("settings", "cut"), COURSES)
@pytest.mark.parametrize("batches_per_shard", [1, 3])
def test_live_storing_and_stored_serve_the_same_and_stand_at_the_same_place(
    settings: dict[str, Any], cut: dict[str, int], batches_per_shard: int, tmp_path: Path
) -> None:
    batches, harvester = toy_batches(**cut), ToyHarvester(outliers=OUTLIERS)
    live = course(toy_buffer(batches, harvester=harvester, **settings))
    shard_bytes = batches_per_shard * (batches[0].numel() * ROW_BYTES + 8)
    store = toy_store(tmp_path, batches, shard_bytes=shard_bytes, **store_settings(settings))
    storing = course(toy_buffer(batches, harvester=harvester, store=store, **settings))
    stored = course(buffer_from(ActivationStore(tmp_path), **settings))
    assert_same_course(storing, live)
    assert_same_course(stored, live)


@pytest.mark.parametrize("multiple", [None, 5.0])
def test_a_run_may_change_where_its_rows_come_from(multiple: float | None, tmp_path: Path) -> None:
    harvester = ToyHarvester(outliers=OUTLIERS)
    settings = {"epochs": 2, "max_norm_multiple": multiple, "skip_positions": 1}
    batches, states, _ = course(toy_buffer(harvester=harvester, **settings))
    whole = filled_store(tmp_path / "whole", harvester=harvester, skip_positions=1)
    for taken, state in list(enumerate(states))[::5]:
        stored = json.loads(json.dumps(state))
        partial = toy_store(tmp_path / f"{taken}", skip_positions=1)
        others = [
            buffer_from(whole, seed=9, **settings),
            toy_buffer(harvester=harvester, store=partial, seed=9, **settings),
            toy_buffer(harvester=harvester, seed=9, **settings),
        ]
        for buffer in others:
            buffer.load_state_dict(stored)
            rest = list(itertools.islice(buffer, 3))  # across the end of a window
            assert all(torch.equal(a, b) for a, b in zip(rest, batches[taken:], strict=False))
            assert len(rest) == min(3, len(batches) - taken)


def test_states_of_stored_rows_resume_live_ones(tmp_path: Path) -> None:
    batches, states, _ = course(buffer_from(filled_store(tmp_path), epochs=2))
    for taken, state in list(enumerate(states))[::3]:
        live = toy_buffer(seed=9, epochs=2)
        live.load_state_dict(state)
        assert all(torch.equal(a, b) for a, b in zip(live, batches[taken:], strict=True))


@pytest.mark.parametrize("restartable", [Restartable, list])
def test_a_missing_shard_is_harvested_again_alone_and_comes_out_the_same(
    restartable: type, tmp_path: Path
) -> None:
    batches = restartable(toy_batches())
    harvester = ToyHarvester()
    filled_store(tmp_path, batches)
    before = store_files(tmp_path)
    for name in [name for name in before if name.startswith("shard")]:
        (tmp_path / name).unlink()
        harvester.calls = 0
        store = ActivationStore(tmp_path)
        assert not store.is_complete
        store.fill(harvester, batches)
        assert store_files(tmp_path) == before
        assert harvester.calls == (2 if "00003" not in name else 1)


@pytest.mark.parametrize("n_sequences", [20, 18])  # 7 token batches, and 6: the last shard is full
def test_the_end_of_token_batches_without_a_length_is_found(n_sequences: int, tmp_path: Path) -> None:
    batches = Restartable(toy_batches(n_sequences=n_sequences))
    store = toy_store(tmp_path, batches)
    assert store.missing_shards == (0,)
    live = course(toy_buffer(batches, epochs=2))
    assert_same_course(course(toy_buffer(batches, epochs=2, store=store)), live)
    assert store.is_complete
    assert (store.n_rows, store.n_batches) == (n_sequences * 7, len(batches.batches))
    assert_same_course(course(buffer_from(store, epochs=2)), live)
    (tmp_path / "shard-00002.json").unlink()
    assert store.missing_shards == (2,)


def test_a_one_shot_iterator_fills_a_store_once(tmp_path: Path) -> None:
    batches = toy_batches()
    whole = store_files(filled_store(tmp_path / "a", Restartable(batches)).folder)
    store = toy_store(tmp_path / "b", Restartable(batches))
    assert sum(len(batch) for batch in toy_buffer(iter(batches), store=store)) == 140
    assert store_files(store.folder) == whole
    with pytest.raises(ValueError, match="one-shot iterator, and its first batch would be lost"):
        toy_store(tmp_path / "c", iter(batches))


def test_rows_and_ids_of_each_token_batch_can_be_read(tmp_path: Path) -> None:
    store = filled_store(tmp_path, skip_positions=2, exclude_token_ids=(3004,))
    for index, tokens in enumerate(toy_batches()):
        expected = [i for i in tokens[:, 2:].flatten().tolist() if i != 3004]
        rows = store.read(index)
        assert store.token_ids(index).tolist() == expected
        assert (1000 * rows[:, 0] + rows[:, 1]).tolist() == expected
    with pytest.raises(ValueError, match="no token batch 7"):
        store.read(7)


def test_scales_of_a_store_come_from_all_its_rows(tmp_path: Path) -> None:
    store = toy_store(tmp_path)
    assert [source.scale for source in store.sources] == [1.0, 1.0]
    store.fill(ToyHarvester(), toy_batches())
    rows = torch.cat([store.read(index) for index in range(store.n_batches)]).double()
    means = [rows[:, :3].norm(dim=1).mean().item(), rows[:, 3:].norm(dim=1).mean().item()]
    expected = [3**0.5 / means[0], 1 / means[1]]
    assert [source.scale for source in store.sources] == pytest.approx(expected, rel=1e-6)


def test_the_size_is_known_beforehand_and_told_afterwards(tmp_path: Path) -> None:
    store = toy_store(tmp_path)
    assert (store.n_rows, store.n_bytes, store.missing_shards) == (0, 0, (0, 1, 2, 3))
    expected = store.n_bytes_expected
    said: list[str] = []
    store.fill(ToyHarvester(), toy_batches(), say=said.append)
    sizes = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    assert store.n_bytes == sum(sizes)
    assert expected is not None
    assert store.n_bytes <= expected <= store.n_bytes + 4 * 64
    assert said[-1] == "shard-00003.safetensors: 14 rows (4 of 4)"


def test_only_missing_shards_are_harvested_when_a_store_is_filled_on_the_way(tmp_path: Path) -> None:
    harvester = ToyHarvester()
    store = toy_store(tmp_path)
    list(toy_buffer(harvester=harvester, store=store, epochs=3))
    assert harvester.calls == len(toy_batches())
    list(toy_buffer(harvester=harvester, store=store, epochs=3))
    assert harvester.calls == len(toy_batches())


def test_a_failed_harvest_keeps_the_shards_before_it_and_can_be_tried_again(tmp_path: Path) -> None:
    class Flaky(ToyHarvester):
        def harvest(self, tokens: Tensor) -> Tensor:
            if self.calls == 4:
                self.calls += 1
                raise OSError("device lost")
            return super().harvest(tokens)

    store, harvester = toy_store(tmp_path), Flaky()
    buffer = toy_buffer(store=store, harvester=harvester)
    served: list[Tensor] = []
    with pytest.raises(OSError, match="device lost"):
        served.extend(buffer)
    assert store.missing_shards == (2, 3)
    served.extend(buffer)
    assert all(torch.equal(a, b) for a, b in zip(served, toy_buffer(), strict=True))


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"skip_positions": 1}, "skip_positions"),
        ({"exclude_token_ids": (5,)}, "exclude_token_ids"),
        ({"dtype": torch.bfloat16}, "dtype"),
        ({"batches": [b + 1 for b in toy_batches()]}, "tokens_sha256"),
        ({"batches": [*toy_batches()[:-1], toy_batches()[-1] + 1]}, "tokens_sha256"),
        ({"batches": Restartable(toy_batches())}, "n_batches"),
    ],
)
def test_a_store_of_another_harvest_raises(changes: dict[str, Any], differing: str, tmp_path: Path) -> None:
    store = toy_store(tmp_path)
    given = dict(changes)
    batches = given.pop("batches", toy_batches())
    with pytest.raises(ValueError, match=rf"holds another harvest; .*'{differing}'"):
        toy_buffer(batches, store=store, **given)
    with pytest.raises(ValueError, match=rf"holds another harvest; .*'{differing}'"):
        toy_store(tmp_path, batches, **given)


def test_other_tokens_without_a_length_raise_where_a_store_is_filled(tmp_path: Path) -> None:
    filled_store(tmp_path, Restartable(toy_batches()))
    (tmp_path / "shard-00003.json").unlink()
    other = Restartable([*toy_batches()[:3], toy_batches()[3] + 1, *toy_batches()[4:]])
    with pytest.raises(ValueError, match=r"shard-00001.safetensors: was made of other token batches"):
        ActivationStore(tmp_path).fill(ToyHarvester(), other)


def test_an_incomplete_store_serves_nothing_without_models(tmp_path: Path) -> None:
    filled_store(tmp_path)
    (tmp_path / "shard-00002.json").unlink()
    with pytest.raises(CheckpointError, match=r"1 shards are missing, the first is shard-00002.*store fill"):
        buffer_from(ActivationStore(tmp_path))


def test_laying_out_a_store_again_opens_it_with_the_shards_it_has(tmp_path: Path) -> None:
    one = filled_store(tmp_path, about={"text": "traces"})
    again = toy_store(tmp_path, shard_bytes=1)
    assert again.layout == one.layout
    assert again.about == {"text": "traces"}
    assert again.is_complete
    with pytest.raises(ValueError, match=r"dtype must be one of .* \(got torch.float16\)"):
        toy_store(tmp_path / "half", dtype=torch.float16)
