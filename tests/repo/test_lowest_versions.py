"""constraints-lowest.txt pins the lower bounds of pyproject.toml, so that `make test-lowest` proves them."""

import re
import tomllib

from tests.repo.source_tree import ROOT


def version(text: str) -> tuple[int, ...]:
    """`2.13` and `2.13.0` are one version."""
    numbers = [int(number) for number in text.split(".")]
    return tuple(numbers + [0] * (4 - len(numbers)))


def lower_bounds() -> dict[str, tuple[int, ...]]:
    """What each direct dependency, and each tool that the quick tests need, must at least be."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    wanted += [r for r in project["optional-dependencies"]["test"] if r.startswith(("pytest>", "hypothesis"))]
    found = {}
    for requirement in wanted:
        match = re.match(r"([a-z0-9-]+)(\[[a-z,]+\])?>=([0-9.]+)", requirement)
        assert match is not None, f"{requirement}: no lower bound"
        found[match[1]] = version(match[3])
    return found


def test_the_lowest_versions_are_the_stated_ones() -> None:
    text = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([a-z0-9-]+)==([0-9.]+)$", text, re.M))
    assert {name: version(pin) for name, pin in pins.items()} == lower_bounds()
