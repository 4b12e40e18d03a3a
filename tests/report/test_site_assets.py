"""The report's own page, scripts and style sheets: complete, small, and without an address elsewhere."""

import itertools
import re
from importlib.resources import files

import pytest

ASSETS = {
    path.name: path.read_text(encoding="utf-8")
    for path in (files("crosscoders.report.site") / "assets").iterdir()
    if path.is_file()
}
CODE = sorted(name for name in ASSETS if name.endswith((".js", ".css")))
SVG_NAMESPACE = '"http://www.w3.org/2000/svg"'  # a name that nothing loads
MARKUP = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|\bimport\("


def test_the_page_refers_to_every_script_and_style_sheet_once() -> None:
    asked = re.findall(r'(?:src|href)="app/([^"]+)"', ASSETS["index.html"])
    assert sorted(asked) == CODE
    assert set(ASSETS) == {"index.html", *CODE}


@pytest.mark.parametrize("name", sorted(ASSETS))
def test_nothing_holds_an_address_elsewhere(name: str) -> None:
    text = ASSETS[name].replace(SVG_NAMESPACE, "")
    assert re.findall(r"(?:\bhttps?:|\bwss?:|url\(\s*['\"]?(?!data:))", text) == []
    assert re.findall(r"(?:src|href)=\"//", text) == []


@pytest.mark.parametrize("name", CODE)
def test_code_makes_no_markup_of_strings_and_stays_small(name: str) -> None:
    assert re.findall(MARKUP, ASSETS[name]) == []
    lines = ASSETS[name].splitlines()
    assert len(lines) <= 300
    assert max(map(len, lines)) <= 110
    assert ASSETS[name].isascii()


@pytest.mark.parametrize("name", [name for name in CODE if name.endswith(".js")])
def test_every_function_is_described_and_used(name: str) -> None:
    """Of all scripts together: they share one global scope."""
    scripts = "\n".join(ASSETS[other] for other in CODE if other.endswith(".js"))
    lines = ASSETS[name].splitlines()
    for before, line in itertools.pairwise(lines):
        if found := re.match(r"(?:async )?function (\w+)", line):
            assert before.endswith("*/"), found[1]
            assert len(re.findall(rf"\b{found[1]}\b", scripts)) > 1, found[1]
    assert lines[0] == '"use strict";'
