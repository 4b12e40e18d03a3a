"""Every page opens from disk and from a server, asks for nothing else, and fits every width."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.browser.driver import Visits, fragment, go

pytestmark = pytest.mark.browser

PAGES = ("#/", "#/latents", "#/latent/0", "#/latent/3", "#/experiments")


def heading(page) -> str:
    """The page's one first-level heading."""
    (text,) = page.locator("h1").all_inner_texts()
    return text


@pytest.mark.parametrize("at", PAGES)
def test_a_page_opens_from_disk(real_report: Path, visits: Visits, at: str) -> None:
    page = visits.open(real_report, at)
    assert fragment(page) == at
    assert heading(page)
    assert page.locator("[role=alert]:visible").all_inner_texts() == []
    assert visits.requests[0] == f"{real_report.as_uri()}/index.html{at}".split("#")[0]
    assert any("/data/" in url for url in visits.requests)


def test_pages_open_in_one_window_after_another(real_report: Path, visits: Visits) -> None:
    page = visits.open(real_report)
    titles = []
    for at in PAGES:
        go(page, at)
        titles.append((heading(page), page.title()))
    assert len(set(titles)) == len(PAGES)


def test_a_page_opens_from_a_server(real_report: Path, visits: Visits, serve: Callable[[Path], str]) -> None:
    address = serve(real_report)
    for at in PAGES:
        assert heading(visits.open(address, at))
    assert {url.startswith(address) for url in visits.requests} == {True}


def test_data_files_are_loaded_once_and_on_demand(real_report: Path, visits: Visits) -> None:
    page = visits.open(real_report, "#/experiments")
    assert not any("/data/latents/" in url for url in visits.requests)
    for at in ("#/latent/0", "#/latent/1", "#/latents", "#/latent/0"):
        go(page, at)
    latents = [url for url in visits.requests if "/data/latents/" in url]
    assert [Path(url).name for url in latents] == ["000.js"]
    assert len(set(visits.requests)) == len(visits.requests)


def test_an_address_that_does_not_exist_says_so(real_report: Path, visits: Visits) -> None:
    for at in ("#/nowhere", "#/latent/999999", "#/latent/x"):
        page = visits.open(real_report, at)
        assert heading(page)
        assert page.locator("main a[href^='#/']").count() > 0


@pytest.mark.parametrize("width", [320, 390])
@pytest.mark.parametrize("report", ["real_report", "hostile_report"])
def test_no_page_is_wider_than_a_phone(
    report: str, width: int, visits: Visits, request: pytest.FixtureRequest
) -> None:
    page = visits.open(request.getfixturevalue(report), width=width)
    widths = {}
    for at in PAGES:
        go(page, at)
        widths[at] = page.evaluate("() => document.scrollingElement.scrollWidth")
    assert {at: w for at, w in widths.items() if w > width} == {}


def test_the_theme_button_changes_colors_and_is_remembered(real_report: Path, visits: Visits) -> None:
    page = visits.open(real_report)
    paper = "() => getComputedStyle(document.body).backgroundColor"
    seen = {page.evaluate(paper)}
    for _ in range(2):
        page.locator("#theme").click()
        seen.add(page.evaluate(paper))
    assert len(seen) == 2
    theme = page.locator("#theme").inner_text()
    page.reload()
    assert page.locator("#theme").inner_text() == theme


def test_who_asks_their_system_for_dark_gets_dark(real_report: Path, visits: Visits) -> None:
    paper = "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    light, dark = (visits.open(real_report, scheme=scheme).evaluate(paper) for scheme in ("light", "dark"))
    assert min(light) > 200
    assert max(dark) < 60
