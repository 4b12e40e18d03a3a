"""What the latent browser says of each latent: categories, verdicts, annotations."""

import math
from pathlib import Path

import pytest
import torch

from crosscoders.latents import LatentTable
from crosscoders.pipeline.report.annotations import annotations_of
from crosscoders.pipeline.report.categories import best_category, category_scores
from crosscoders.pipeline.report.columns import browser_columns
from crosscoders.pipeline.report.evidence import evidence_of
from crosscoders.pipeline.report.options import ReportOptions
from crosscoders.pipeline.report.reading import common_tokens
from crosscoders.reasoning import CATEGORIES
from crosscoders.report.site.columns import SEPARATOR
from crosscoders.report.site.pages import Snippets
from crosscoders.report.site.text import TokenText

NAN = math.nan


def table(**columns: list[float]) -> LatentTable:
    n = len(next(iter(columns.values())))
    given = {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}
    return LatentTable({"latent": torch.arange(n), **given}, 100)


def test_the_category_is_the_best_onset_question_of_those_at_least_at_the_threshold() -> None:
    first, second = CATEGORIES[:2]
    latents = table(
        **{
            f"auroc/onset/{first}": [0.9, 0.6, NAN, 0.7, NAN],
            f"auroc/onset/{second}": [0.95, 0.69, 0.8, 0.2, NAN],
            f"auroc/function/{first}/Wait": [1.0] * 5,
        }
    )
    found = category_scores(latents)
    assert found is not None
    assert found[1] == "onset"
    category, score = best_category(found[0])
    assert category.tolist() == [1, -1, 1, 0, -1]
    assert score.tolist()[:4] == [0.95, 0.69, 0.8, 0.7]
    assert math.isnan(score[4])


def test_without_onset_questions_the_marker_words_decide_by_their_mean() -> None:
    first, second = CATEGORIES[:2]
    latents = table(
        **{
            f"auroc/function/{first}/Wait": [1.0, 0.6],
            f"auroc/function/{first}/Hold": [0.6, 1.0],
            f"auroc/function/{second}/So": [0.9, 0.5],
            f"auroc/inside/{first}": [1.0, 1.0],
        }
    )
    found = category_scores(latents)
    assert found is not None
    assert found[1] == "function"
    category, score = best_category(found[0])
    assert category.tolist() == [1, 0]
    assert score.tolist() == pytest.approx([0.9, 0.8])


def test_without_questions_there_is_no_category() -> None:
    latents = table(frequency=[0.1, 0.0], **{"auroc/marker/deductive": [0.9, 0.9]})
    assert category_scores(latents) is None
    assert [column.name for column in browser_columns(latents)] == ["latent", "frequency"]


def test_the_columns_come_in_order_and_only_where_there_is_something_to_say() -> None:
    latents = table(frequency=[0.1, NAN], **{"norm_l2/base": [1.0, 2.0], "norm_l2/distilled": [3.0, 4.0]})
    columns = browser_columns(latents, fires_on=["a", ""], annotations=["", ""])
    names = ["latent", "fires_on", "frequency", "norm_l2/base", "norm_l2/distilled"]
    assert [column.name for column in columns] == names
    assert torch.equal(columns[2].values, latents["frequency"]) or bool(columns[2].values[1].isnan())
    assert all(column.help.endswith(".") for column in columns)
    assert [c.name for c in browser_columns(latents, annotations=["", "x"])][1] == "annotation"


def test_a_latent_without_a_category_has_no_score() -> None:
    question = {f"auroc/onset/{CATEGORIES[0]}": [0.9, 0.6, NAN, 0.7]}
    columns = {column.name: column for column in browser_columns(table(**question))}
    assert columns["category"].values.tolist() == [0, -1, -1, 0]
    assert columns["category_score"].values.tolist() == pytest.approx([0.9, NAN, NAN, 0.7], nan_ok=True)
    assert "undefined where it has none" in columns["category_score"].help


def test_a_column_that_says_nothing_is_not_shown_at_first() -> None:
    question = {f"auroc/onset/{CATEGORIES[0]}": [0.5, 0.6]}
    latents = table(nrn_l2=[NAN, NAN], frequency=[NAN, 0.1], **question)
    found = {one.name: one.is_shown for one in browser_columns(latents, fires_on=["", ""])}
    shown = {"latent": True, "frequency": True}
    assert found == dict.fromkeys(("category", "category_score", "fires_on", "nrn_l2"), False) | shown


def test_a_separator_inside_a_token_parts_nothing() -> None:
    text = TokenText(
        tokens=torch.tensor([0, 1, 1, 2]),
        strings=["a\u001fb", ", ", "\udc80"],
        token_ids=torch.arange(3),
        row_start=torch.tensor([0, 4]),
    )
    one = torch.ones(5, dtype=torch.int64)
    snippets = Snippets(
        ptr=torch.tensor([0, 4, 5]),
        kind=torch.tensor([0, 0, 0, 1, 1]),
        start=torch.tensor([0, 1, 2, 3, 3]),
        length=one,
        at=0 * one,
        activation=one.float(),
        token_activation=one.float(),
        token_share=one.float()[:, None],
    )
    (first, second) = common_tokens(snippets, text)
    assert first.split(SEPARATOR) == [", ", "a\\u001fb"]
    assert second == ""


def test_the_evidence_holds_every_question_and_no_verdict_where_there_is_none() -> None:
    found = evidence_of(table(frequency=[0.1, 0.2], **{"auroc/onset/deductive": [0.5, NAN]}), None)
    assert found.reason == [None, None]
    assert found.values is None
    assert list(found.enrichment_columns) == ["auroc/onset/deductive"]
    assert found.enrichment is not None
    assert found.enrichment[0].item() == 0.5


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_the_first_file_that_speaks_of_a_latent_is_heard(tmp_path: Path) -> None:
    own = write(tmp_path / "mine" / "notes.csv", 'latent,annotation\n1,"mine, with ""quotes"""\n3,\n')
    write(tmp_path / "annotations.csv", "annotation,latent\nkept,1\nkept,2\n")
    header = "rank,latent,lexical,lexical_score,lexical_explanation,label,label_explanation\n"
    write(
        tmp_path / "experiments" / "annotation-x" / "annotation.csv",
        header + "1,2,deductive,1,e,,e\n2,3,deductive,1,e,alternative,e\n3,0,,0,e,,e\n",
    )
    found = annotations_of(tmp_path, n_latents=5, extra=own)
    both = "deductive (lexical), alternative (label)"
    assert found == ("", 'mine, with "quotes"', "kept", both, "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("latent,note\n1,x\n", "columns 'latent' and 'annotation'"),
        ("latent,annotation\n7,x\n", "0 to 4"),
        ("latent,annotation\n-1,x\n", "0 to 4"),
        ("latent,annotation\nseven,x\n", "another crosscoder"),
        ("", "got"),
    ],
)
def test_annotations_that_cannot_be_meant_are_refused(tmp_path: Path, text: str, said: str) -> None:
    file = write(tmp_path / "notes.csv", text)
    with pytest.raises(ValueError, match=said):
        annotations_of(tmp_path, n_latents=5, extra=file)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n_tokens": -1}, "n_tokens"),
        ({"n_top": 0}, "n_top"),
        ({"n_before": 250}, "at most 255"),
        ({"steer": (1, 1)}, "once each"),
        ({"steer": (-1,)}, "steer"),
        ({"steer": (1,), "n_tokens": 0}, "need the models"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ReportOptions(**wrong)
