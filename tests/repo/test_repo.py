"""Rules about the repository's text that no linter knows."""

import re
import subprocess
import tomllib

import pytest

from tests.repo.source_tree import PACKAGE, ROOT

# A path of somebody's machine; `~/`, `$HOME` and relative paths say the same for everybody.
_MACHINE_PATH = re.compile(r"(?<![\w.:/~-])/(work|home|root|opt|tmp|mnt|scratch|farm)/")
_PACKAGE_HOST = re.compile(r"pythonhosted|pypi\.org/" + r"simple|index-url|find-links|download\.pytorch")
_TEXT = {".py", ".md", ".toml", ".txt", ".cfg", ".yml", ".yaml", ".json", ".jinja", ".html", ""}
_MAX_LINES = 400
# Files longer than that, each with the reason why it is one file.
LONG_FILES: dict[str, str] = {
    "src/crosscoders/crosscoder/module.py": "one class; half of it says in which space each method works",
}


def tracked_files() -> list[str]:
    """Files that git tracks or would add; outside a checkout, what lies in the usual folders."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: the list of tracked files is not known")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def text_files() -> dict[str, str]:
    names = [name for name in tracked_files() if (ROOT / name).suffix in _TEXT]
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in names}


def python_files() -> dict[str, str]:
    return {name: text for name, text in text_files().items() if name.endswith(".py")}


def test_no_file_names_a_path_or_host_of_one_machine() -> None:
    places = [
        f"{name}:{number}"
        for name, text in text_files().items()
        for number, line in enumerate(text.splitlines(), 1)
        if (_MACHINE_PATH.search(line) or _PACKAGE_HOST.search(line)) and name != "tests/repo/test_repo.py"
    ]
    assert places == []


def test_the_path_pattern_sees_paths_and_spares_urls() -> None:
    assert _MACHINE_PATH.search("see /" + "home/me/x")
    assert _MACHINE_PATH.search('open("/' + 'tmp/x")')
    assert not _MACHINE_PATH.search("https://example.org/home/x, a/tmp/b, ./home/x")


def test_python_source_is_ascii() -> None:
    assert [name for name, text in python_files().items() if not text.isascii()] == []


def test_files_are_short_or_say_why_not() -> None:
    long = {name for name, text in python_files().items() if text.count("\n") > _MAX_LINES}
    assert long == set(LONG_FILES)


def test_constraints_pin_exactly_and_name_no_place() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]
    assert [pin for pin in pins if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin)] == []
    assert not any("://" in line for line in lines)
    assert "torch==2.13.0" in pins
    assert len({pin.split("==")[0] for pin in pins}) == len(pins)


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    names = {re.split(r"[\[<>=;! ]", requirement)[0] for requirement in wanted}
    pinned = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    assert names - pinned == set()


def test_the_changelog_opens_with_unreleased_and_ends_at_this_version() -> None:
    """Until the first release there is no released heading; after it the newest is the package's version."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\]", text, re.M)
    version = re.search(r'__version__ = "(.+?)"', (PACKAGE / "_version.py").read_text(encoding="utf-8"))
    assert version is not None
    assert headings[0] == "Unreleased"
    assert headings[1:2] in ([], [version[1]])
    assert headings[1:] or version[1] == "0.1.0"
