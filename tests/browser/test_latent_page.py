"""The page of one latent and the page of experiments show what the data holds."""

import re
from pathlib import Path

import pytest

from crosscoders.report.site.pages import LatentPages, Snippets
from crosscoders.report.site.writer import Site, write_site
from tests.browser.driver import Visits
from tests.report.site_cases import changed

pytestmark = pytest.mark.browser

LATENT = 70  # has steering samples


def pages_of(site: Site) -> LatentPages:
    assert site.pages is not None
    return site.pages


def snippets_of(site: Site) -> Snippets:
    snippets = pages_of(site).snippets
    assert snippets is not None
    return snippets


def as_number(text: str) -> float:
    """A number as the page writes it."""
    return float(text.replace("\u2212", "-").replace(",", "").lstrip("+"))


def test_twelve_snippets_strongest_first(hostile_report: Path, hostile_site: Site, visits: Visits) -> None:
    snippets = snippets_of(hostile_site)
    own = slice(int(snippets.ptr[LATENT]), int(snippets.ptr[LATENT + 1]))
    page = visits.open(hostile_report, f"#/latent/{LATENT}")
    lists = page.locator("[role=listbox]")
    assert lists.count() == 12
    labels = [lists.nth(at).get_attribute("aria-label") or "" for at in range(12)]
    said = [as_number(re.findall(r"activation (\S+) at", label)[0]) for label in labels]
    assert said == pytest.approx(snippets.activation[own].tolist(), rel=2e-3)
    lengths = [lists.nth(at).get_by_role("option").count() for at in range(12)]
    assert lengths == snippets.length[own].tolist()
    assert [label.startswith("Strongest") for label in labels] == [True] * 8 + [False] * 4


def test_shade_and_shares_of_a_token_are_its_numbers(
    hostile_report: Path, hostile_site: Site, visits: Visits
) -> None:
    """Each token says its activation and each source's share; both were stored in 8 bits."""
    snippets = snippets_of(hostile_site)
    first = int(snippets.length[: int(snippets.ptr[LATENT])].sum())
    n = int(snippets.length[int(snippets.ptr[LATENT])])
    page = visits.open(hostile_report, f"#/latent/{LATENT}")
    tokens = page.locator("[role=listbox]").first.get_by_role("option")
    peak = float(pages_of(hostile_site).max_activation[LATENT])
    for at in range(n):
        label = tokens.nth(at).get_attribute("aria-label") or ""
        fires = re.search(r"activation (\S+?);", label)
        activation = float(snippets.token_activation[first + at])
        assert (as_number(fires[1]) if fires else 0.0) == pytest.approx(activation, abs=peak / 200, rel=1e-3)
        shares = [as_number(text) for text in re.findall(r"(?:base|distilled) (\S+?)[,;]", label)]
        assert shares == pytest.approx(snippets.token_share[first + at].tolist(), abs=peak / 100)


def test_the_shares_are_called_what_they_are(hostile_report: Path, visits: Visits) -> None:
    page = visits.open(hostile_report, f"#/latent/{LATENT}")
    assert "share of the pre-activation, W_enc[source] . x[source]" in page.locator("main").inner_text()
    bars = page.locator(".bars").first
    assert bars.is_visible()
    page.get_by_label("Show the shares").uncheck()
    assert not bars.is_visible()


def test_arrow_keys_go_from_token_to_token(hostile_report: Path, visits: Visits) -> None:
    """One tab stop per snippet; Home and End lead to its ends."""
    page = visits.open(hostile_report, f"#/latent/{LATENT}")
    tokens = page.locator("[role=listbox]").first.get_by_role("option")
    assert page.locator("[role=listbox] >> nth=0 >> [tabindex='0']").count() == 1
    tokens.first.focus()
    focused = "(nodes) => nodes.findIndex((node) => node === document.activeElement)"
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "Home"):
        page.keyboard.press(key)
        seen.append(tokens.evaluate_all(focused))
    assert seen == [1, 2, 1, tokens.count() - 1, 0]
    assert page.locator(".tip:visible").count() == 1


def test_the_end_of_the_scale_says_which_text_it_comes_from(
    hostile_site: Site, visits: Visits, tmp_path: Path
) -> None:
    """The table's maximum is of all held-out text, that of the shades of the text that was read."""
    columns = [
        changed(c, values=c.values * 2) if c.name == "max_activation" else c for c in hostile_site.columns
    ]
    write_site(tmp_path / "r", changed(hostile_site, columns=columns))
    legend = visits.open(tmp_path / "r", f"#/latent/{LATENT}").locator(".snippet-legend").inner_text()
    peak = float(pages_of(hostile_site).max_activation[LATENT])
    assert f"{peak:.3f}, its largest in the text that snippets were read from" in legend
    assert f"{2 * peak:.3f} in all 244,092 held-out tokens" in legend


def test_what_it_fires_on_is_shown_token_by_token(
    hostile_report: Path, hostile_site: Site, visits: Visits
) -> None:
    fires_on = next(c for c in hostile_site.columns if c.name == "fires_on").values
    page = visits.open(hostile_report, f"#/latent/{LATENT}")
    assert page.locator("main header .piece").all_text_contents() == str(fires_on[LATENT]).split("\x1f")


def test_nearest_latents_are_links(hostile_report: Path, hostile_site: Site, visits: Visits) -> None:
    near = pages_of(hostile_site).nearest
    assert near is not None
    page = visits.open(hostile_report, f"#/latent/{LATENT}")
    links = page.locator("#nearest tbody a")
    assert [int(text) for text in links.all_inner_texts()] == near[LATENT].tolist()
    assert links.first.get_attribute("href") == f"#/latent/{int(near[LATENT, 0])}"


def test_steering_samples_stand_on_the_pages_of_their_latents(hostile_report: Path, visits: Visits) -> None:
    assert visits.open(hostile_report, f"#/latent/{LATENT}").locator("#steering tbody tr").count() == 3
    assert visits.open(hostile_report, "#/latent/71").locator("#steering").count() == 0


def test_a_latent_that_never_fires_says_so(hostile_report: Path, visits: Visits) -> None:
    page = visits.open(hostile_report, "#/latent/3")
    assert "never fires" in page.locator("#snippets").inner_text()
    assert page.locator("[role=listbox]").count() == 0


def test_figures_of_experiments_load_and_say_what_they_show(hostile_report: Path, visits: Visits) -> None:
    page = visits.open(hostile_report, "#/experiments")
    figures = page.locator("main img")
    assert figures.count() >= 2
    for figure in figures.all():
        figure.scroll_into_view_if_needed()
        assert figure.get_attribute("alt")
        figure.evaluate("(image) => image.decode()")
        assert figure.evaluate("(image) => image.naturalWidth") == 64
