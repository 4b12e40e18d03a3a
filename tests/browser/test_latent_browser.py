"""The table of latents: what it shows is what the data says, and its address says what it shows."""

import csv
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import torch

from crosscoders.report.site.columns import Column
from crosscoders.report.site.writer import Site, write_site
from tests.browser.driver import Visits, fragment, go, settle
from tests.report.site_cases import changed

pytestmark = pytest.mark.browser

PER_PAGE = 100
PIECE_END = "\x1f"  # between the tokens of one cell


def shown(page) -> list[int]:
    """The latents of the rows that the table shows, in their order."""
    return [int(text) for text in page.locator("main tbody th a").all_inner_texts()]


def headers(page) -> list[str]:
    return page.locator("main thead th").all_inner_texts()


def assert_says(page, text: str) -> None:
    """Wait until the line above the table says how many latents match."""
    line = page.locator("main [role=status]", has_text=text)
    line.wait_for()
    assert line.count() == 1


def params(page) -> dict[str, list[str]]:
    return parse_qs(fragment(page).partition("?")[2])


def column(site: Site, name: str) -> Column:
    return next(column for column in site.columns if column.name == name)


def numbers(site: Site, name: str) -> torch.Tensor:
    """A column as the page has it: in float32."""
    values = column(site, name).values
    assert isinstance(values, torch.Tensor)
    return values.float()


def chosen(site: Site, name: str) -> list[str]:
    """A choice column as words."""
    found = column(site, name)
    return [found.choices[at] if at >= 0 else "" for at in numbers(site, name).int().tolist()]


def sorted_by(site: Site, name: str, *, descending: bool) -> list[int]:
    """Latents by a measure, undefined ones last, ties by number."""
    values = numbers(site, name).tolist()
    defined = [at for at, value in enumerate(values) if value == value]
    undefined = [at for at, value in enumerate(values) if value != value]
    return sorted(defined, key=lambda at: (-values[at] if descending else values[at], at)) + undefined


def where(site: Site, holds: Callable[[int], bool]) -> list[int]:
    return [at for at in range(len(column(site, "latent"))) if holds(at)]


def test_the_table_opens_with_all_latents_in_order(hostile_report: Path, visits: Visits) -> None:
    page = visits.open(hostile_report, "#/latents")
    assert shown(page) == list(range(PER_PAGE))
    assert_says(page, "300 of 300 latents")


def test_a_header_sorts_and_sorts_back(hostile_report: Path, hostile_site: Site, visits: Visits) -> None:
    page = visits.open(hostile_report, "#/latents")
    header = page.locator("thead th", has_text="stability")
    for direction in ("descending", "ascending"):
        header.get_by_role("button").click()
        assert header.get_attribute("aria-sort") == direction
        expected = sorted_by(hostile_site, "stability", descending=direction == "descending")
        assert shown(page) == expected[:PER_PAGE]
    assert params(page) == {"sort": ["stability"], "dir": ["asc"]}


def test_undefined_values_come_last_and_say_so(
    hostile_report: Path, hostile_site: Site, visits: Visits
) -> None:
    page = visits.open(hostile_report, "#/latents?sort=stability&dir=asc&page=3")
    assert shown(page) == sorted_by(hostile_site, "stability", descending=False)[2 * PER_PAGE :]
    at = headers(page).index("stability")
    assert page.locator("tbody tr").last.locator("th, td").nth(at).inner_text() == "\u2013"


def test_a_verdict_filters(hostile_report: Path, hostile_site: Site, visits: Visits) -> None:
    page = visits.open(hostile_report, "#/latents")
    page.locator("#verdict").select_option("rotated")
    verdicts = chosen(hostile_site, "verdict")
    expected = where(hostile_site, lambda at: verdicts[at] == "rotated")
    assert_says(page, f"{len(expected)} of 300")
    assert shown(page) == expected[:PER_PAGE]
    assert params(page) == {"verdict": ["rotated"]}


def test_latents_that_never_fire_can_be_left_out(hostile_report: Path, visits: Visits) -> None:
    page = visits.open(hostile_report, "#/latents")
    page.locator("#fires").check()
    assert_says(page, "292 of 300")
    assert shown(page)[:4] == [0, 1, 2, 4]


def test_words_search_what_a_latent_fires_on_and_its_annotation(
    hostile_report: Path, hostile_site: Site, visits: Visits
) -> None:
    page = visits.open(hostile_report, "#/latents")
    page.locator("#search").press_sequentially('"</SCRIPT>" note')
    texts = [
        f"{fires.replace(PIECE_END, ' ')}\n{note}".lower()
        for fires, note in zip(
            column(hostile_site, "fires_on").values, column(hostile_site, "annotation").values
        )
    ]
    expected = where(hostile_site, lambda at: "</script>" in texts[at] and "note" in texts[at])
    assert_says(page, f"{len(expected)} of 300")
    assert shown(page) == expected
    assert 0 < len(expected) < 300


@pytest.mark.parametrize(
    ("query", "name", "holds"),
    [
        ("nrn>0.6", "nrn_l2", lambda value: value > 0.6),
        ("kappa <= -0.02", "kappa", lambda value: value <= -0.02),
        ("stability=undefined", "stability", lambda value: value != value),
        ("frequency=0", "frequency", lambda value: value == 0),
        ("cos<\u22120.1", "decoder_cosine", lambda value: value < torch.tensor(-0.1).item()),
    ],
)
def test_comparisons_filter(
    query: str,
    name: str,
    holds: Callable[[float], bool],
    hostile_report: Path,
    hostile_site: Site,
    visits: Visits,
) -> None:
    page = visits.open(hostile_report, "#/latents")
    page.locator("#search").fill(query)
    values = numbers(hostile_site, name).tolist()
    expected = where(hostile_site, lambda at: holds(values[at]))
    assert_says(page, f"{len(expected)} of 300")
    assert shown(page) == expected[:PER_PAGE]
    assert 0 < len(expected) < 300


def test_a_comparison_with_no_column_is_named(hostile_report: Path, visits: Visits) -> None:
    page = visits.open(hostile_report, "#/latents")
    page.locator("#search").fill("nosuch>1")
    page.locator(".search-notes", has_text="nosuch").wait_for()
    assert_says(page, "300 of 300")
    assert shown(page) == list(range(PER_PAGE))


def test_a_phrase_matches_across_the_tokens_that_a_latent_fires_on(
    hostile_report: Path, hostile_site: Site, visits: Visits
) -> None:
    """The separator between tokens is nobody's text: not searched for, not shown, not in the file."""
    texts = [str(text) for text in column(hostile_site, "fires_on").values]
    phrase = texts[137].split(PIECE_END)[1:]
    page = visits.open(hostile_report, "#/latents")
    page.locator("#search").fill(f'"{" ".join(phrase)}"')
    expected = where(hostile_site, lambda at: texts[at].split(PIECE_END)[1:] == phrase)
    assert_says(page, f"{len(expected)} of 300")
    assert shown(page) == expected


def test_what_a_cell_shows_can_be_searched_for(
    hostile_report: Path, hostile_site: Site, visits: Visits
) -> None:
    """An escape is found by what the page writes for it."""
    page = visits.open(hostile_report, "#/latents")
    page.locator("#search").fill(r"\xf0\x9f")
    texts = [f"{fires}{note}" for fires, note in zip(
        column(hostile_site, "fires_on").values, column(hostile_site, "annotation").values)]  # fmt: skip
    expected = where(hostile_site, lambda at: "\udcf0\udc9f" in texts[at])
    assert_says(page, f"{len(expected)} of 300")
    assert shown(page) == expected


def test_the_file_names_each_token(hostile_report: Path, hostile_site: Site, visits: Visits) -> None:
    page = visits.open(hostile_report, "#/latents")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download CSV").click()
    with waiting.value.path().open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    pieces = [str(text).split(PIECE_END) for text in column(hostile_site, "fires_on").values]
    plain = [at for at, words in enumerate(pieces) if words[0].isalpha() and words[0].isascii()]
    assert [rows[at]["fires_on"] for at in plain] == [" | ".join(pieces[at]) for at in plain]
    assert len(rows) == 300
    assert plain


def test_columns_with_nothing_in_them_are_left_out(
    hostile_site: Site, visits: Visits, tmp_path: Path
) -> None:
    """A rule of the table: whatever it was asked to show, an empty column is shown on request only."""
    blank = {"choice": lambda c: -torch.ones_like(c.values), "text": lambda c: [""] * len(c)}
    empty = {"category", "annotation", "stability", "verdict"}
    columns = [
        changed(c, values=blank.get(c.kind, lambda c: c.values * torch.nan)(c)) if c.name in empty else c
        for c in hostile_site.columns
    ]
    write_site(tmp_path / "r", changed(hostile_site, columns=columns))
    for width in (1280, 390):
        assert empty.isdisjoint(headers(visits.open(tmp_path / "r", "#/latents", width=width)))
    page = visits.open(tmp_path / "r", "#/latents?column=annotation")
    assert headers(page) == ["latent", "annotation"]
    page = visits.open(tmp_path / "r", "#/latent/0")
    assert empty.isdisjoint(page.locator("main dt").all_inner_texts())


@pytest.mark.parametrize("width", [390, 360])
def test_the_table_fits_a_phone(hostile_report: Path, visits: Visits, width: int) -> None:
    """With its own choice of columns; no badge is cut, and no column is a few letters wide."""
    page = visits.open(hostile_report, "#/latents", width=width)
    region = page.locator(".table-region")
    assert region.evaluate("(box) => box.scrollWidth - box.clientWidth") <= 0
    assert set(headers(page)) == {"latent", "fires_on", "nrn_l2", "verdict"}
    cut = "(badges) => badges.filter((b) => b.parentElement.scrollWidth > b.parentElement.clientWidth).length"
    assert page.locator("main tbody .badge").evaluate_all(cut) == 0
    assert page.locator("main tbody td.cell-text").first.evaluate("(cell) => cell.clientWidth") > 60


def test_what_was_just_typed_outlives_a_quick_click(hostile_report: Path, visits: Visits) -> None:
    """A click within the pause after a keystroke takes the typed words along."""
    page = visits.open(hostile_report, "#/latents")
    box = page.locator("thead button[data-column=ratio]").bounding_box()
    assert box is not None
    page.locator("#search").focus()
    page.keyboard.insert_text("nrn>0.6")
    page.mouse.click(box["x"] + 10, box["y"] + 10)
    page.locator("thead [aria-sort] button[data-column=ratio]").wait_for()
    assert page.locator("#search").input_value() == "nrn>0.6"
    assert params(page) == {"q": ["nrn>0.6"], "sort": ["ratio"], "dir": ["desc"]}


def test_the_caption_says_how_the_table_is_sorted(hostile_report: Path, visits: Visits) -> None:
    page = visits.open(hostile_report, "#/latents?sort=ratio&dir=desc")
    assert page.locator("caption").inner_text() == "Latents, sorted by ratio, descending"


def test_nothing_found_says_so_and_leads_back(hostile_report: Path, visits: Visits) -> None:
    page = visits.open(hostile_report, "#/latents")
    page.locator("#search").fill("nrn>0.6 nrn<0.2")
    assert_says(page, "None of 300")
    page.get_by_role("link", name="Show all of them").click()
    settle(page)
    assert shown(page) == list(range(PER_PAGE))
    assert page.locator("#search").input_value() == ""


def test_an_address_gives_the_same_rows_in_a_fresh_window(hostile_report: Path, visits: Visits) -> None:
    page = visits.open(hostile_report, "#/latents")
    page.locator("#search").fill("nrn>0.3")
    page.locator("#fires").check()
    page.locator("thead button", has_text="ratio").click()
    page.get_by_role("link", name="Next").click()
    settle(page)
    fresh = visits.open(hostile_report, fragment(page))
    assert shown(fresh) == shown(page)
    assert shown(fresh)
    assert fresh.locator("#search").input_value() == "nrn>0.3"
    assert fresh.locator("#fires").is_checked()
    assert set(params(fresh)) == {"q", "fires", "sort", "dir", "page"}


def test_back_and_forward_go_through_what_was_shown(hostile_report: Path, visits: Visits) -> None:
    page = visits.open(hostile_report, "#/latents")
    page.locator("thead button", has_text="frequency").click()
    by_frequency = shown(page)
    page.locator("tbody th a").nth(4).click()
    page.wait_for_url("**#/latent/**")
    settle(page)
    assert f"{by_frequency[4]}" in page.locator("h1").inner_text()
    page.go_back()
    settle(page)
    assert shown(page) == by_frequency
    assert page.evaluate("() => document.activeElement.textContent") == str(by_frequency[4])
    page.go_back()
    settle(page)
    assert shown(page) == list(range(PER_PAGE))
    page.go_forward()
    settle(page)
    assert shown(page) == by_frequency


def test_typing_leaves_one_entry_in_the_history(hostile_report: Path, visits: Visits) -> None:
    page = visits.open(hostile_report)
    go(page, "#/latents")
    page.locator("#search").press_sequentially("nrn>0.6", delay=150)
    assert_says(page, " of 300")
    page.go_back()
    settle(page)
    assert fragment(page) == "#/"


def test_columns_are_chosen_and_kept_in_the_address(hostile_report: Path, visits: Visits) -> None:
    page = visits.open(hostile_report, "#/latents")
    before = headers(page)
    page.locator("summary", has_text="Columns").click()
    page.get_by_label("kappa", exact=True).check()
    assert "kappa" in headers(page)
    page.get_by_label("nrn_l2", exact=True).uncheck()
    assert "nrn_l2" not in headers(page)
    fresh = visits.open(hostile_report, fragment(page))
    assert headers(fresh) == headers(page)
    page.get_by_role("button", name="Show the default columns").click()
    assert headers(page) == before


def test_pages_hold_every_latent_once(hostile_report: Path, visits: Visits) -> None:
    page = visits.open(hostile_report, "#/latents")
    seen = shown(page)
    for _ in range(2):
        page.get_by_role("link", name="Next").click()
        settle(page)
        seen += shown(page)
    assert seen == list(range(300))
    assert page.get_by_role("link", name="Next").get_attribute("aria-disabled") == "true"


def test_a_number_jumps_to_its_latent(hostile_report: Path, visits: Visits) -> None:
    page = visits.open(hostile_report)
    for wrong in ("300", "-1", "x"):
        page.locator("#jump-to").fill(wrong)
        page.locator("#jump-to").press("Enter")
        page.locator("#jump-problem", has_text="0 to 299").wait_for()
    page.locator("#jump-to").fill("137")
    page.locator("#jump-to").press("Enter")
    page.wait_for_url("**#/latent/137")
    settle(page)
    assert "137" in page.locator("h1").inner_text()


def test_the_keyboard_alone_sorts(hostile_report: Path, hostile_site: Site, visits: Visits) -> None:
    page = visits.open(hostile_report, "#/latents")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement.dataset.column") == "decoder_cosine":
            break
    page.keyboard.press("Enter")
    assert shown(page) == sorted_by(hostile_site, "decoder_cosine", descending=True)[:PER_PAGE]
    assert page.evaluate("() => document.activeElement.dataset.column") == "decoder_cosine"
    page.keyboard.press("Space")
    assert shown(page) == sorted_by(hostile_site, "decoder_cosine", descending=False)[:PER_PAGE]


def test_neighbors_of_a_latent_follow_the_list_it_was_opened_from(
    hostile_report: Path, hostile_site: Site, visits: Visits
) -> None:
    expected = sorted_by(hostile_site, "ratio", descending=True)
    page = visits.open(hostile_report, f"#/latent/{expected[3]}?sort=ratio&dir=desc")
    page.get_by_role("link", name="Next").first.click()
    page.wait_for_url(f"**#/latent/{expected[4]}?**")
    settle(page)
    assert str(expected[4]) in page.locator("h1").inner_text()
