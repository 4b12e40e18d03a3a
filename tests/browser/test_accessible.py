"""axe-core finds nothing serious on any page, and the keyboard alone gets everywhere."""

import importlib
from pathlib import Path

import pytest

from tests.browser.driver import Visits, fragment, settle

pytestmark = pytest.mark.browser

PAGES = {"overview": "#/", "browser": "#/latents", "latent": "#/latent/0", "experiments": "#/experiments"}
# Style sheets are read through the page's own rules; asking for them again is what the page forbids.
_OPTIONS = {"preload": False, "resultTypes": ["violations"]}


def serious_faults(page) -> list[str]:
    """Violations of impact serious or critical, each with its first places."""
    axe = importlib.import_module("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page, options=_OPTIONS).response["violations"]
    return [
        f"{fault['impact']} {fault['id']}: {node['html'][:160]} {node['failureSummary'][:300]}"
        for fault in found
        if fault["impact"] in {"serious", "critical"}
        for node in fault["nodes"][:3]
    ]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(
    real_report: Path, visits: Visits, name: str, scheme: str, width: int
) -> None:
    assert serious_faults(visits.open(real_report, PAGES[name], width=width, scheme=scheme)) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious_in_a_full_report(
    hostile_report: Path, visits: Visits, name: str, scheme: str
) -> None:
    """The made-up report has what a small run lacks: every verdict, categories, steering samples."""
    page = visits.open(hostile_report, PAGES[name], scheme=scheme)
    assert serious_faults(page) == []


def test_axe_sees_a_fault_that_is_there(real_report: Path, visits: Visits) -> None:
    page = visits.open(real_report)
    page.evaluate("() => document.querySelector('main').append(document.createElement('img'))")
    assert [fault.split(":")[0] for fault in serious_faults(page)] == ["critical image-alt"]


def test_tab_reaches_the_pages_and_enter_opens_them(real_report: Path, visits: Visits) -> None:
    """The first stop skips to the content; after a navigation the new heading has the focus."""
    page = visits.open(real_report)
    page.evaluate("() => document.activeElement.blur()")
    stops = []
    for _ in range(6):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("() => document.activeElement.getAttribute('href')"))
        if stops[-1] == "#/latents":
            break
    assert stops[0] == "#main"
    page.keyboard.press("Enter")
    settle(page)
    assert fragment(page) == "#/latents"
    assert page.evaluate("() => document.activeElement.tagName") == "H1"


def test_what_has_the_focus_shows_it(real_report: Path, visits: Visits) -> None:
    page = visits.open(real_report, "#/latents")
    for _ in range(25):
        page.keyboard.press("Tab")
        style = page.evaluate("""() => {
          const style = getComputedStyle(document.activeElement);
          return [document.activeElement.outerHTML.slice(0, 100), style.outlineStyle, style.outlineWidth];
        }""")
        assert style[1:] != ["none", "0px"], style[0]
