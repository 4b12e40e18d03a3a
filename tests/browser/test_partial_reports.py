"""Reports that lack a part open every page without a complaint, and say what is missing."""

from pathlib import Path

import pytest

from crosscoders.report.site.writer import Site, write_site
from tests.browser.driver import Visits, go
from tests.report.site_cases import changed

pytestmark = pytest.mark.browser

PAGES = ("#/", "#/latents", "#/latent/0", "#/latent/3", "#/experiments")
BARE = {"snippets": None, "histogram": None, "max_activation": None, "steering": {}} | {
    f"lens_{side}{number}": None for side in ("top", "bottom") for number in ("", "_value")
}
# Text that stands on a page by itself, outside of every element: nothing of ours does.
_LOOSE = """() => [...document.querySelectorAll("main, .page, section")].flatMap((node) =>
  [...node.childNodes].filter((child) => child.nodeType === Node.TEXT_NODE && child.data.trim() !== ""))
  .map((text) => text.data)"""


@pytest.mark.parametrize("has_pages", [True, False])
def test_a_report_made_without_models_opens(
    hostile_site: Site, visits: Visits, tmp_path: Path, has_pages: bool
) -> None:
    """The fixture `visits` sees a file that is asked for and missing."""
    assert hostile_site.pages is not None
    pages = changed(hostile_site.pages, **BARE) if has_pages else None
    write_site(tmp_path / "r", changed(hostile_site, text=None, pages=pages))
    page = visits.open(tmp_path / "r")
    for at in PAGES:
        go(page, at)
        assert page.locator("[role=alert]:visible").all_inner_texts() == []
    page.wait_for_timeout(200)
    go(page, "#/latent/0")
    assert "need the models" in page.locator("main").inner_text()
    assert (page.locator("#nearest tbody tr").count() > 0) == has_pages


def test_an_overview_without_verification_opens(hostile_site: Site, visits: Visits, tmp_path: Path) -> None:
    """Also with nothing trained, spliced or noted, and no experiment run."""
    none = dict.fromkeys(("verdicts", "training", "reconstruction", "splice", "causal", "alignment"))
    overview = {**hostile_site.overview, **none, "notes": [], "latents_of_interest": [], "paragraph": []}
    experiments = {"experiments": [], "none": "No experiment was run.", "notes": []}
    columns = [column for column in hostile_site.columns if column.name != "verdict"]
    site = changed(hostile_site, overview=overview, experiments=experiments, columns=columns, figures={})
    write_site(tmp_path / "r", site)
    page = visits.open(tmp_path / "r")
    for at in PAGES:
        go(page, at)
        assert page.locator("[role=alert]:visible").all_inner_texts() == []
        assert (at, page.evaluate(_LOOSE)) == (at, [])


def test_nothing_stands_loose_on_a_real_page(real_report: Path, visits: Visits) -> None:
    page = visits.open(real_report)
    for at in PAGES:
        go(page, at)
        assert (at, page.evaluate(_LOOSE)) == (at, [])


def test_the_text_is_read_ahead(hostile_report: Path, visits: Visits) -> None:
    """Once the first page stands: so that the first latent opens as quickly as the next one."""
    for at in ("#/", "#/latents"):
        page = visits.open(hostile_report, at)
        page.wait_for_timeout(300)
        assert visits.requests[-1].endswith("/data/text.js")
    visits.requests.clear()
    visits.open(hostile_report, "#/experiments").wait_for_timeout(300)
    assert not any("/data/text.js" in url for url in visits.requests)


def test_groups_of_sentences_are_paragraphs_with_a_heading(
    hostile_site: Site, visits: Visits, tmp_path: Path
) -> None:
    groups = {"Seen": ["It sees 80%."], "<b>": ["One was found.", "A screen reports six."], "None": []}
    said = [{"heading": heading, "sentences": sentences} for heading, sentences in groups.items()]
    overview = {**hostile_site.overview, "paragraphs": said}
    write_site(tmp_path / "r", changed(hostile_site, overview=overview))
    paragraphs = visits.open(tmp_path / "r").locator(".findings p").all_inner_texts()
    assert paragraphs == ["Seen. It sees 80%.", "<b>. One was found. A screen reports six."]


def test_a_word_stays_whole_in_a_table_on_a_phone(hostile_site: Site, visits: Visits, tmp_path: Path) -> None:
    causal = [{**one, "set": "survivors"} for one in hostile_site.overview["causal"]]
    write_site(tmp_path / "r", changed(hostile_site, overview={**hostile_site.overview, "causal": causal}))
    page = visits.open(tmp_path / "r", width=390)
    broken = """(words) => words.filter((word) => /^[\\w-]{1,20}$/.test(word.textContent)
      && new Set([...word.getClientRects()].map((box) => Math.round(box.top))).size > 1
      && !word.textContent.includes("-")).map((word) => word.textContent)"""
    words = page.locator(".numbers .token-text")
    assert words.count() > 5
    assert words.evaluate_all(broken) == []


def test_a_figure_of_known_size_keeps_its_place(hostile_site: Site, visits: Visits, tmp_path: Path) -> None:
    """Its height is there before the file is: what stands below does not move."""
    experiments = {**hostile_site.experiments}
    (first, *others) = experiments["experiments"]
    figures = [{**figure, "width": 640, "height": 400} for figure in first["figures"]]
    experiments["experiments"] = [{**first, "figures": figures}, *others]
    write_site(tmp_path / "r", changed(hostile_site, experiments=experiments))
    page = visits.open(tmp_path / "r", "#/experiments", width=390)
    image = page.locator("main img").first
    width, height = image.evaluate("(image) => [image.offsetWidth, image.offsetHeight]")
    assert width <= 390
    assert height / width == pytest.approx(400 / 640, abs=0.02)
