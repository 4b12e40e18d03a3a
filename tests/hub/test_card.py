"""The card says what the config says, survives hostile names, and knows whether it was edited."""

import ast
import math
import re
from pathlib import Path

import pytest
import yaml

from crosscoders.hub.card import is_unedited, metadata_only, model_card
from tests.hub.toys import header_of, saved

SCORES = {"n_tokens": 200_000, "l0": 99.72, "explained_variance": {"base": 0.81234}, "token_means": None}
EVALUATION = {"reconstruction": {"all text": SCORES, "traces": {"l0": 101.2}}}


def header(tmp_path: Path) -> dict[str, object]:
    saved(tmp_path / "a")
    return header_of(tmp_path / "a")


def cells(card: str) -> list[list[str]]:
    """The cells of every table row; a bar after a backslash belongs to its cell."""
    rows = [line for line in card.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def outside_code(card: str) -> str:
    """A card without its code spans and backslash-escaped characters: what could be markup."""
    return re.sub(r"`[^`\n]*`|\\.", "", card)


def test_the_tables_hold_sources_measures_and_checksums(tmp_path: Path) -> None:
    content = header(tmp_path)
    rows = cells(model_card(content, repo_id="someone/cross", evaluation=EVALUATION))
    link = "[owner/base-model](https://huggingface.co/owner/base-model)"
    assert [
        "`base`",
        link,
        "`ffffffffffff`",
        "`blocks.1.hook_resid_pre`",
        "6",
        "0.2",
        "`abababababab`",
    ] in rows
    assert ["text", "n_tokens", "l0", "explained_variance base"] in rows
    assert ["all text", "200,000", "99.72", "0.8123"] in rows
    assert ["traces", "", "101.2", ""] in rows
    entry = content["files"]["model.safetensors"]  # type: ignore[index]
    assert ["`model.safetensors`", f"{entry['bytes']:,}", f"`{entry['sha256']}`"] in rows
    assert ["threshold", "0.015"] in rows


def test_a_local_models_path_is_not_told(tmp_path: Path) -> None:
    card = model_card(header(tmp_path), repo_id="someone/cross")
    assert "/srv/someone" not in card
    assert "`distilled`" in card


def test_the_metadata_is_yaml_that_the_hub_knows(tmp_path: Path) -> None:
    card = model_card(header(tmp_path), repo_id="someone/cross", metadata={"license": "mit", "tags": ["old"]})
    assert yaml.safe_load(card.split("---\n")[1]) == {
        "license": "mit",
        "library_name": "crosscoders",
        "tags": ["crosscoder", "sparse-dictionary", "interpretability", "model-diffing"],
        "base_model": ["owner/base-model"],
    }


def test_the_code_that_it_shows_names_its_place(tmp_path: Path) -> None:
    card = model_card(header(tmp_path), repo_id="someone/cross", subfolder="sweep/k3")
    assert 'cc.from_pretrained("someone/cross", subfolder="sweep/k3")' in card
    compile(card.split("```python\n")[1].split("```")[0], "card", "exec")


@pytest.mark.parametrize(
    "evil", ["a | b", "x`<script>alert(1)</script>`", "line\nbreak", "[a](javascript:x)"]
)
def test_hostile_names_neither_break_a_table_nor_become_markup(tmp_path: Path, evil: str) -> None:
    content = header(tmp_path)
    content["crosscoder"]["sources"][0] |= {"name": evil, "hook_name": evil, "model_id": evil}  # type: ignore
    content["training_summary"] = {evil: evil}
    card = model_card(content, repo_id="someone/cross", evaluation={evil: {evil: {evil: 0.5}}})
    plain = model_card(header(tmp_path), repo_id="someone/cross", evaluation={"x": {"y": {"z": 0.5}}})
    assert [len(row) for row in cells(card)] == [len(row) for row in cells(plain)]
    assert "<script" not in outside_code(card)
    assert "](javascript" not in outside_code(card)


def test_numbers_that_are_not_finite_are_shown_as_such(tmp_path: Path) -> None:
    card = model_card(header(tmp_path), repo_id="a/b", evaluation={"x": {"y": {"l0": math.nan}}})
    assert ["y", "nan"] in cells(card)
    assert "None was given" in model_card(header(tmp_path), repo_id="a/b")


def test_an_edit_anywhere_is_seen(tmp_path: Path) -> None:
    card = model_card(header(tmp_path), repo_id="someone/cross")
    assert is_unedited(card)
    for at in range(0, len(card), 37):
        assert not is_unedited(card[:at] + "\x7f" + card[at + 1 :])
    assert not is_unedited(card + "\n")
    assert not is_unedited("")


def test_only_front_matter_counts_as_a_fresh_card() -> None:
    assert metadata_only("---\nlicense: mit\n---\n") == {"license": "mit"}
    assert metadata_only("") == {}
    for text in ("# Mine", "---\nlicense: mit\n---\nText", "---\n- a\n---\n", "---\n[\n---\n"):
        assert metadata_only(text) is None


def test_a_hostile_sub_folder_stays_text_in_title_and_code(tmp_path: Path) -> None:
    card = model_card(header(tmp_path), repo_id="a/b", subfolder='x"); boom() # <b>')
    code = ast.parse(card.split("```python\n")[1].split("```")[0])
    calls = [node.func for node in ast.walk(code) if isinstance(node, ast.Call)]
    assert all(getattr(call, "id", "print") == "print" for call in calls)
    assert "<b>" not in outside_code(card.split("```python")[0])


def test_options_and_versions_of_a_header_stay_text(tmp_path: Path) -> None:
    content, evil = header(tmp_path), "1 | <script>x</script>\n# [a](javascript:x)"
    plain = [len(row) for row in cells(model_card(content, repo_id="a/b"))]
    content["library_version"] = evil
    content["crosscoder"]["activation_fn"]["mode"] = evil  # type: ignore[index]
    card = model_card(content, repo_id="a/b")
    assert [len(row) for row in cells(card)] == plain
    assert "<script" not in outside_code(card)
    assert "](javascript" not in outside_code(card)
