"""What a release says, it says once: version, changelog, citation, and pages that name only what exists."""

import re
import runpy
import tomllib

import pytest
import yaml

from tests.repo.source_tree import ROOT

CHECK = runpy.run_path(str(ROOT / ".ci" / "check_release.py"))
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
RELEASED = "## [Unreleased]\n\n## [1.2.0] - 2026-01-31\n\n- A thing.\n\n## [1.1.0] - 2025-12-01\n"


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def changelog_faults(text: str, *, version: str = "1.2.0", final: bool = False) -> list[str]:
    return CHECK["changelog_faults"](text, version=version, final=final)


def test_this_checkout_says_one_version() -> None:
    assert CHECK["text_faults"](ROOT) == []


def test_a_changelog_before_and_after_a_release() -> None:
    assert changelog_faults("## [Unreleased]\n\n- A thing.\n") == []
    assert changelog_faults(RELEASED) == []
    assert changelog_faults(RELEASED, final=True) == []


@pytest.mark.parametrize(
    ("text", "version", "final", "said"),
    [
        ("## [1.2.0] - 2026-01-31\n", "1.2.0", False, "first section"),
        (RELEASED, "1.3.0", False, "newest release"),
        (RELEASED.replace(" - 2026-01-31", ""), "1.2.0", False, "no date"),
        ("## [Unreleased]\n\n- A thing.\n", "1.2.0", True, "no section"),
        (RELEASED.replace("d]\n", "d]\n\n- Later.\n", 1), "1.2.0", True, "still holds"),
    ],
)
def test_a_changelog_that_says_something_else(text: str, version: str, final: bool, said: str) -> None:
    (fault,) = changelog_faults(text, version=version, final=final)
    assert said in fault


@pytest.mark.parametrize("key", ["title", "version", "license", "abstract", "authors"])
def test_a_citation_that_says_something_else(key: str) -> None:
    project = tomllib.loads(page("pyproject.toml"))["project"]
    citation = {**yaml.safe_load(page("CITATION.cff")), key: "other"}
    version = CHECK["package_version"](ROOT)
    (fault,) = CHECK["citation_faults"](citation, project=project, version=version)
    assert fault.startswith(f"CITATION.cff: {key} is 'other'")


def test_what_an_sdist_lacks_or_has_too_much() -> None:
    names, wanted = {"a.py", "b.py", "PKG-INFO"}, {"a.py", "c.py", ".gitignore"}
    assert CHECK["sdist_faults"](names, wanted=wanted) == ["sdist misses: c.py", "sdist surprises: b.py"]


@pytest.mark.parametrize("name", PAGES)
def test_links_of_a_page_lead_to_files_of_the_repository(name: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page(name))
    local = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if target and not (ROOT / target).exists()] == []
    assert local or name == "SECURITY.md"


@pytest.mark.parametrize("name", PAGES)
def test_pages_name_commands_that_the_makefile_has(name: str) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", page("Makefile"), re.M))
    named = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", page(name), re.M))
    assert named - targets == set()
    assert named or name == "SECURITY.md"


def test_who_contributes_finds_every_tier_and_check() -> None:
    named = set(re.findall(r"`make ([a-z-]+)`", page("CONTRIBUTING.md")))
    assert {"test", "test-all", "lint", "types", "docs", "test-lowest", "release-check"} <= named
    assert ".ci/run" in page("CONTRIBUTING.md")
