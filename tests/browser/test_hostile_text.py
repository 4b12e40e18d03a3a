"""Text is data: whatever a token, a name or a note holds, the report shows it and runs none of it."""

from pathlib import Path

import pytest

from crosscoders.report.site.writer import Site
from tests.browser.driver import Visits, go, settle
from tests.report.hostile_text import HOSTILE

pytestmark = pytest.mark.browser

PAGES = ("#/", "#/latents", "#/latent/0", "#/latent/3", "#/latent/70", "#/experiments")
# Written by hand, not by the report's rule: what must stand on the page for some of the strings.
SHOWN = {
    "<script>window.hacked=1</script>": "<script>window.hacked=1</script>",
    "&lt;b&gt;": "&lt;b&gt;",
    "\n": r"\n",
    "\x00": r"\u0000",
    "\x01\x1b[31m": r"\u0001\u001b[31m",
    "\u2028": r"\u2028",
    "\u202eevil\u202c": r"\u202eevil\u202c",
    "\u2067right\u2069": r"\u2067right\u2069",
    "\u200b\u200d\ufeff": r"\u200b\u200d\ufeff",
    "\udcf0\udc9f": r"\xf0\x9f",
    " caf\udcc3": r" caf\xc3",
    "\u00a0": r"\u00a0",
    "\u4e16\u754c": "\u4e16\u754c",
    "\U0001f600": "\U0001f600",
}
# Elements and attributes that only a hostile string would ask for.
_FOREIGN = """() => [...document.querySelectorAll("*")].filter((node) =>
  ["IFRAME", "OBJECT", "EMBED", "STYLE", "BASE"].includes(node.tagName)
  || (node.tagName === "SCRIPT" && !/^(app|data)\\/[\\w/]+\\.js$/.test(node.getAttribute("src")))
  || (node.tagName === "IMG" && !/^figures\\//.test(node.getAttribute("src")))
  || (node.tagName === "META" && node.httpEquiv && node.httpEquiv !== "Content-Security-Policy")
  || [...node.attributes].some(({name, value}) => /^on|^srcdoc$/i.test(name)
    || (/^(href|src|xlink:href|action|formaction)$/i.test(name) && /javascript:/i.test(value)))
).map((node) => node.outerHTML.slice(0, 200))"""
_UNSEEN = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200b\ufeff\x1b\x00"
_SCRIPTS = "() => [...document.scripts].filter((script) => !script.src).length"


@pytest.mark.parametrize("at", PAGES)
@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_text_runs_nothing_and_makes_no_element(
    hostile_report: Path, visits: Visits, at: str, width: int
) -> None:
    page = visits.open(hostile_report, at, width=width)
    for details in page.locator("details:not([open]) > summary").all():
        if details.is_visible():
            details.click()
    settle(page)
    assert page.evaluate("() => typeof window.hacked") == "undefined"
    assert page.evaluate(_FOREIGN) == []
    assert page.evaluate(_SCRIPTS) == 0


def test_no_page_shows_a_character_that_turns_or_hides_text(hostile_report: Path, visits: Visits) -> None:
    """Looks at what is rendered and at what screen readers and pointers are told."""
    page = visits.open(hostile_report)
    for at in PAGES:
        go(page, at)
        said = page.evaluate("""() => document.body.innerText + document.title
          + [...document.querySelectorAll("[title], [aria-label], [alt]")].map((node) =>
              [node.title, node.getAttribute("aria-label"), node.alt].join(" ")).join(" ")""")
        odd = [character for character in _UNSEEN if character in said]
        assert (at, odd) == (at, [])


def column(site: Site, name: str) -> list[str]:
    """A column of text as the page got it."""
    found = next(column for column in site.columns if column.name == name)
    return [str(text) for text in found.values]


def test_cells_show_hostile_text_as_what_it_is(
    hostile_report: Path, hostile_site: Site, visits: Visits
) -> None:
    """What the latents fire on begins with the hostile strings, one per row; each token is a piece."""
    page = visits.open(hostile_report, "#/latents?column=latent&column=fires_on")
    cells = page.locator("main tbody td")
    texts = column(hostile_site, "fires_on")
    for string, shown in SHOWN.items():
        row = HOSTILE.index(string)
        first, *others = texts[row].split("\x1f")
        assert first == string
        assert cells.nth(row).locator(".piece").all_text_contents() == [shown, *others]


def test_a_latents_page_shows_its_annotation_as_what_it_is(
    hostile_report: Path, hostile_site: Site, visits: Visits
) -> None:
    annotations = column(hostile_site, "annotation")
    page = visits.open(hostile_report)
    for string in ("\n", "\u202eevil\u202c", "<script>window.hacked=1</script>"):
        latent = next(at for at, text in enumerate(annotations) if text.endswith(": " + string))
        go(page, f"#/latent/{latent}")
        assert f"note {latent}: {SHOWN[string]}" in page.locator("main header").all_text_contents()[0]


def test_snippets_show_each_token_as_what_it_is(
    hostile_report: Path, hostile_site: Site, visits: Visits
) -> None:
    """The strongest snippet of latent 0, token by token; of the strings, those whose escapes are known."""
    assert hostile_site.pages is not None
    assert hostile_site.text is not None
    snippets, text = hostile_site.pages.snippets, hostile_site.text
    assert snippets is not None
    start, length = int(snippets.start[0]), int(snippets.length[0])
    strings = [text.strings[at] for at in text.tokens[start : start + length].tolist()]
    page = visits.open(hostile_report, "#/latent/0")
    words = page.locator("[role=listbox]").first.locator(".token-word").all_text_contents()
    assert len(words) == len(strings)
    known = [(SHOWN.get(string, string), word) for string, word in zip(strings, words, strict=True)
             if string in SHOWN or (string.isascii() and string.isprintable())]  # fmt: skip
    assert [shown for shown, _ in known] == [word for _, word in known]
    assert len(known) > length / 2


def test_right_to_left_words_stay_in_their_own_place(hostile_report: Path, visits: Visits) -> None:
    """Where text from right to left stands among other words, an isolated element holds it."""
    word = "\u05e9\u05dc\u05d5\u05dd"
    page = visits.open(hostile_report, f"#/latent/{HOSTILE.index(word)}")
    assert word in page.locator("main header").all_text_contents()[0]
    loose = page.evaluate("""() => {
      const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
      const loose = [];
      for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const isOpen = (element) => {
          const {display, unicodeBidi} = getComputedStyle(element);
          return display === "inline" && !/isolate/.test(unicodeBidi);
        };
        let parent = node.parentElement;
        while (isOpen(parent)) parent = parent.parentElement;
        const isBlock = getComputedStyle(parent).display !== "inline";
        const isRightToLeft = /[\\u0590-\\u08ff]/.test(node.data);
        if (isRightToLeft && isBlock && parent.childNodes.length > 1) loose.push(node.data);
      }
      return loose;
    }""")
    assert loose == []
