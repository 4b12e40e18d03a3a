"""The latent table against brute force over dense latents."""

import csv
import json

import pytest
import torch

from crosscoders.activation_fns import BatchTopK, ReLU
from crosscoders.crosscoder import Crosscoder
from crosscoders.latents import LatentTable, TokenBatch, n_one_sided, tabulate_latents
from tests.core.toy import toy_crosscoder, toy_rows


@pytest.fixture
def crosscoder() -> Crosscoder:
    return toy_crosscoder(ReLU(), n_latents=16)


def batches(rows: torch.Tensor, chunk: int) -> list[TokenBatch]:
    answer = (rows[:, 0] > 0).long()
    nothing = torch.zeros_like(answer)
    return [
        TokenBatch(rows=part, token_ids=none, origin=none, answers={"onset/q": a})
        for part, none, a in zip(rows.split(chunk), nothing.split(chunk), answer.split(chunk), strict=True)
    ]


def test_columns_agree_with_brute_force(crosscoder):
    rows = toy_rows(400)
    table = tabulate_latents(crosscoder, batches(rows, 64), questions=("onset/q",))
    with torch.no_grad():
        latents = crosscoder.encode(rows).double()
    fired = latents > 0
    assert torch.equal(table["frequency"], fired.double().mean(dim=0))
    torch.testing.assert_close(
        table["mean_activation"], latents.sum(dim=0) / fired.sum(dim=0), equal_nan=True
    )
    torch.testing.assert_close(table["max_activation"], latents.max(dim=0).values)
    a, b = (crosscoder.decoder(name).double().norm(dim=1) for name in ("base", "distilled"))
    torch.testing.assert_close(table["nrn_l2"], b / (a + b))
    raw_a, raw_b = a / 0.2, b / 0.8
    torch.testing.assert_close(table["nrn_l2_raw"], raw_b / (raw_a + raw_b))


def test_table_does_not_depend_on_batches_and_leaves_the_mode_alone(crosscoder):
    rows = toy_rows(300)
    crosscoder.train()
    tables = [
        tabulate_latents(crosscoder, batches(rows, chunk), questions=("onset/q",)) for chunk in (300, 41)
    ]
    assert crosscoder.training
    for name in tables[0].columns:
        torch.testing.assert_close(tables[0][name], tables[1][name], equal_nan=True)


def test_normalized_and_raw_nrn_agree_after_folding(crosscoder):
    rows = toy_rows(50)
    table, folded = (tabulate_latents(c, batches(rows, 50)) for c in (crosscoder, crosscoder.fold()))
    for name in ("nrn_l2", "nrn_l2_raw", "nrn_l1", "norm_l2/base"):
        torch.testing.assert_close(table[name], folded[name], rtol=1e-5, atol=1e-6)


def test_csv_and_json_hold_every_number(crosscoder, tmp_path):
    table = tabulate_latents(crosscoder, batches(toy_rows(80), 40), questions=("onset/q",))
    table.to_csv(tmp_path / "t.csv")
    table.to_json(tmp_path / "t.json")
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [int(row["latent"]) for row in rows] == list(range(16))
    assert float(rows[3]["nrn_l2"]) == pytest.approx(float(table["nrn_l2"][3]))
    again = LatentTable.from_json(tmp_path / "t.json")
    for name in table.columns:
        assert again[name].dtype == table[name].dtype, name
        torch.testing.assert_close(again[name], table[name], equal_nan=True, rtol=0, atol=0)
    assert json.loads((tmp_path / "t.json").read_text())["n_tokens"] == 80


def test_top_and_best_name_the_latent_with_the_highest_auroc(crosscoder):
    table = tabulate_latents(crosscoder, batches(toy_rows(300), 100), questions=("onset/q",))
    best = int(table["auroc/onset/q"].nan_to_num(-1).argmax())
    assert table.best("onset/q") == best == int(table.top("q", n=3)["latent"][0])
    assert len(table.top("q", n=3)) == 3


def test_unknown_column_and_missing_tokens_raise(crosscoder):
    with pytest.raises(ValueError, match="no tokens"):
        tabulate_latents(crosscoder, [])
    table = tabulate_latents(crosscoder, batches(toy_rows(20), 20))
    with pytest.raises(KeyError, match="no column 'nothing'"):
        table["nothing"]


def test_summary_prints_none_when_no_latent_is_one_sided():
    crosscoder = toy_crosscoder(ReLU(), n_latents=16)
    with torch.no_grad():
        crosscoder.W_dec[:, 6:] = crosscoder.W_dec[:, :6]
    summary = tabulate_latents(crosscoder, batches(toy_rows(50), 50)).summary()
    assert "none" in summary
    assert "verified" not in summary


def test_the_norm_screen_counts_latents_that_fire_beyond_its_lines():
    nan = float("nan")
    columns = {
        "latent": torch.arange(7),
        "frequency": torch.tensor([0.1, 0.1, 0.1, 0.1, 0.0, 0.1, 0.1]),
        "nrn_l2": torch.tensor([0.0, 0.1, 0.9, 0.95, 0.0, nan, 0.5], dtype=torch.float64),
    }
    table = LatentTable(columns, 10)
    assert n_one_sided(table) == 2
    assert "(NRN below 0.1 or above 0.9): 2. A screen only" in table.summary()
    assert "  0.1 to 0.3: 1\n" in table.summary()
    del columns["nrn_l2"]
    assert n_one_sided(LatentTable(columns, 10)) is None


def test_batch_topk_counts_do_not_depend_on_batches():
    crosscoder = toy_crosscoder(BatchTopK(k=3), n_latents=16)
    crosscoder.train()
    crosscoder(toy_rows(64))
    tables = [tabulate_latents(crosscoder.eval(), batches(toy_rows(200), chunk)) for chunk in (200, 7)]
    assert torch.equal(tables[0]["frequency"], tables[1]["frequency"])
