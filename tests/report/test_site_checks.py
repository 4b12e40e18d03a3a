"""What cannot be shown is refused where it is made, by a message that says where and what."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError

from crosscoders.report.site.checks import json_ready
from crosscoders.report.site.columns import Column, table_file
from crosscoders.report.site.writer import Site
from tests.report.site_cases import changed
from tests.report.synthetic_site import synthetic_site

NUMBERS = torch.tensor([0.5, 1.5])


@pytest.fixture(scope="module")
def site() -> Site:
    return synthetic_site(70, n_text_tokens=1_000, n_strings=120)


@contextmanager
def assert_refused(message: str) -> Iterator[None]:
    """A refusal by this message, or by the shape checker where it runs at every call, as in most tests."""
    with pytest.raises((ValueError, TypeCheckError)) as caught:
        yield
    assert isinstance(caught.value, TypeCheckError) or re.search(message, str(caught.value))


def column(**changes: Any) -> Column:
    plain = {"name": "x", "label": "x", "help": "", "kind": "number", "values": NUMBERS}
    return Column(**{**plain, **changes})


@pytest.mark.parametrize(("changes", "message"), [
    ({"name": ""}, "name of at least one character"),
    ({"kind": "date"}, "kind should be one of number, integer, choice, text, got 'date'"),
    ({"values": torch.zeros(2, 2)}, r"tensor of shape \[any\], got torch.float32 of shape \[2, 2\]"),
    ({"values": torch.zeros(2, dtype=torch.bool)}, "integer tensor of shape"),
    ({"values": torch.zeros(2, dtype=torch.complex64)}, "got torch.complex64"),
    ({"values": ["a", "b"]}, "got list"),
    ({"kind": "text"}, "expects a list of strings"),
    ({"kind": "text", "values": "ab"}, "expects a list of strings"),
    ({"kind": "text", "values": ["a", None]}, "expects a list of strings"),
    ({"choices": ["a"]}, "choices belong to kind 'choice'"),
    ({"kind": "choice", "values": torch.zeros(2).long()}, "choices belong to kind 'choice'"),
    ({"kind": "choice", "choices": ["a"]}, "integer tensor"),
    ({"kind": "choice", "choices": ["a"], "values": torch.tensor([0, 1])}, "from -1 to 0, got 0 to 1"),
    ({"kind": "choice", "choices": ["a"], "values": torch.tensor([0, -2])}, "from -1 to 0, got -2 to 0"),
    ({"kind": "choice", "choices": ["a"] * 256, "values": torch.tensor([0])}, "at most 255 choices"),
])  # fmt: skip
def test_a_wrong_column_is_refused(changes: Mapping[str, Any], message: str) -> None:
    with assert_refused(message):
        column(**changes)


def test_whole_numbers_that_float32_cannot_hold_are_refused() -> None:
    whole = column(name="latent", kind="integer", values=torch.tensor([2**24]))
    assert table_file([whole], n_tokens=None)[1]["latent"][0] == 2**24
    with pytest.raises(ValueError, match="16777217"):
        table_file([column(kind="integer", values=torch.tensor([2**24 + 1]))], n_tokens=None)


TEXT: list[tuple[Callable[[Any], dict[str, Any]], str]] = [
    (lambda t: {"tokens": t.tokens + 120}, "indices of strings.*from 0 to 119"),
    (lambda t: {"tokens": t.tokens - 1}, "got -1 to"),
    (lambda t: {"tokens": t.tokens.float()}, "integer tensor of shape"),
    (lambda t: {"strings": [*t.strings, "x"]}, r"token_ids.*\[121\], got torch.int64 of shape \[120\]"),
    (lambda t: {"strings": [b"x", *t.strings[1:]]}, "expected a list of strings"),
    (lambda t: {"row_start": t.row_start[:-1]}, "pointers that rise from 0 to 1000"),
    (lambda t: {"row_start": t.row_start + 1}, "pointers that rise from 0 to 1000"),
    (lambda t: {"row_start": t.row_start.clamp(min=5)}, "pointers that rise from 0 to 1000"),
    (lambda t: {"row_start": t.row_start[:0]}, "pointers that rise from 0 to 1000"),
    (lambda t: {"row_start": torch.tensor([0, 900, 800, 1000])}, "pointers that rise"),
    (lambda t: {"token_ids": t.token_ids - 12}, "token_ids.*got -1"),
]
SNIPPETS: list[tuple[Callable[[Any], dict[str, Any]], str]] = [
    (lambda s: {"kind": s.kind + 1}, "kind: expected numbers from 0 to 1, got 1 to 2"),
    (lambda s: {"kind": s.kind[1:]}, "Snippets.start.*shape"),
    (lambda s: {"length": s.length * 0}, "from 1 to 255"),
    (lambda s: {"length": s.length + 240}, "from 1 to 255"),
    (lambda s: {"at": s.length}, "one of the snippet's own tokens"),
    (lambda s: {"at": s.at - 30}, "one of the snippet's own tokens"),
    (lambda s: {"ptr": s.ptr + 1}, "pointers that rise"),
    (lambda s: {"ptr": s.ptr.flip(0)}, "pointers that rise"),
    (lambda s: {"activation": s.activation.long()}, "floating-point tensor"),
    (lambda s: {"token_activation": s.token_activation[1:]}, "token_activation.*shape"),
    (lambda s: {"token_activation": -s.token_activation}, "finite numbers of at least 0"),
    (lambda s: {"token_activation": s.token_activation / 0}, "finite numbers of at least 0"),
    (lambda s: {"token_share": s.token_share * torch.nan}, "token_share: expected finite"),
]
PAGES: list[tuple[Callable[[Any], dict[str, Any]], str]] = [
    (lambda p: {"sources": ("a", "a")}, "distinct names"),
    (lambda p: {"sources": ()}, "distinct names"),
    (lambda p: {"sources": ("a",)}, "lens_top: .*shape"),
    (lambda p: {"lens_top": None}, "lens_top and lens_top_value come together"),
    (lambda p: {"nearest_cosine": None}, "nearest and nearest_cosine come together"),
    (lambda p: {"nearest": p.nearest + 70}, "from 0 to 69"),
    (lambda p: {"nearest_cosine": p.nearest_cosine[:, 1:]}, "nearest_cosine.*shape"),
    (lambda p: {"lens_bottom": p.lens_bottom - 200}, "lens_bottom: expected numbers from 0"),
    (lambda p: {"histogram": p.histogram[:, 1:]}, r"shape \[70, 24\]"),
    (lambda p: {"histogram": p.histogram - 1}, "histogram: expected numbers from 0"),
    (lambda p: {"max_activation": None}, "max_activation.*got NoneType"),
    (lambda p: {"max_activation": p.max_activation[1:]}, r"shape \[70\]"),
    (
        lambda p: {"snippets": changed(p.snippets, ptr=torch.cat([p.snippets.ptr, p.snippets.ptr[-1:]]))},
        r"ptr.*shape \[71\]",
    ),
    (lambda p: {"snippets": changed(p.snippets, token_share=p.snippets.token_share[:, :1])}, "token_share"),
    (lambda p: {"steering": {70: []}}, "steering: expected numbers from 0 to 69"),
]
EVIDENCE: list[tuple[Callable[[Any], dict[str, Any]], str]] = [
    (lambda e: {"reason": [1, *e.reason[1:]]}, "one string or None per latent"),
    (lambda e: {"columns": [*e.columns, "x"]}, "values.*shape"),
    (lambda e: {"values": None}, "missing, though it has columns"),
    (lambda e: {"enrichment": e.enrichment[1:]}, "enrichment.*shape"),
]


@pytest.mark.parametrize(("change", "message"), TEXT)
def test_wrong_text_is_refused(site: Site, change: Callable[[Any], Any], message: str) -> None:
    with assert_refused(message):
        changed(site.text, **change(site.text))


@pytest.mark.parametrize(("change", "message"), SNIPPETS)
def test_wrong_snippets_are_refused(site: Site, change: Callable[[Any], Any], message: str) -> None:
    assert site.pages is not None
    with assert_refused(message):
        changed(site.pages.snippets, **change(site.pages.snippets))


@pytest.mark.parametrize(("change", "message"), PAGES)
def test_wrong_pages_are_refused(site: Site, change: Callable[[Any], Any], message: str) -> None:
    with assert_refused(message):
        changed(site.pages, **change(site.pages))


@pytest.mark.parametrize(("change", "message"), EVIDENCE)
def test_wrong_evidence_is_refused(site: Site, change: Callable[[Any], Any], message: str) -> None:
    assert site.pages is not None
    with assert_refused(message):
        changed(site.pages.evidence, **change(site.pages.evidence))


def test_parts_that_do_not_fit_together_are_refused(site: Site) -> None:
    other = synthetic_site(64, n_text_tokens=1_000, n_strings=120)
    short = synthetic_site(70, n_text_tokens=500, n_strings=120)
    few = synthetic_site(70, n_text_tokens=1_000, n_strings=60)
    latent, rest = site.columns[0], site.columns[1:]
    for changes, message in (
        ({"pages": other.pages}, "pages of 64 latents, a table of 70"),
        ({"columns": rest}, "the first one 'latent'"),
        ({"columns": ()}, "the first one 'latent'"),
        ({"columns": (latent, rest[0], rest[0])}, "distinct names"),
        ({"columns": (latent, other.columns[1])}, "expected 70 entries in each"),
        ({"text": None}, "need the text that they point into"),
        ({"text": short.text}, "tokens of text.*from 0 to 500"),
        ({"text": few.text}, "indices of strings.*from 0 to 59"),
    ):
        with pytest.raises(ValueError, match=message):
            changed(site, **changes)


@pytest.mark.parametrize("name", [
    "../x.png", "/x.png", "a/../x.png", "a//x.png", "./x.png", ".x.png", "x.svg", "x.html", "x.js", "", "x",
    "a b.png", "a#b.png", "a%2fb.png", "a\\b.png", "C:x.png", "x.png\n", "a\x00.png", "\u202e.png",
])  # fmt: skip
def test_no_figure_leaves_the_folder_or_runs(site: Site, tmp_path: Path, name: str) -> None:
    (tmp_path / "real.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="should be a place below figures/"):
        changed(site, figures={name: tmp_path / "real.png"})


def test_a_figure_that_is_no_file_is_refused(site: Site, tmp_path: Path) -> None:
    for missing in (tmp_path, tmp_path / "x.png"):
        with pytest.raises(ValueError, match="which is no file"):
            changed(site, figures={"a/x.png": missing})


def test_json_has_null_for_nan_and_refuses_what_it_cannot_say() -> None:
    nan = float("nan")
    assert json_ready("x", {"a": (nan, 1, [True, None, "\udc80"])}) == {
        "a": [None, 1, [True, None, "\udc80"]]
    }
    for wrong, where in (({"a": [0, float("inf")]}, r"x\.a\[1\]"), ({1: 2}, "x: "), ({"a": {1, 2}}, r"x\.a")):
        with pytest.raises(ValueError, match=where):
            json_ready("x", wrong)
