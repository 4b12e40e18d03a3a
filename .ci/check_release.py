"""Checks that a release would say one thing everywhere: version, changelog, citation, wheel and sdist.

Usage: python .ci/check_release.py dist [--final]

Between releases the changelog opens with "Unreleased". With --final, which is for the commit that is tagged,
the first thing below it must be the dated section of this version, and nothing may be left unreleased.
"""

import argparse
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
# Lies in every sdist without being a file of the repository.
_ADDED_BY_THE_BUILD = {"PKG-INFO", ".gitignore"}
# The settings of one checkout or of one host of repositories, of no use to who builds from the sdist.
_LEFT_OUT = re.compile(r"\.git\w+|\.github/.*")
_SECTION = re.compile(r"^## \[(?P<name>[^\]]+)\](?P<date>.*)$", re.M)


def package_version(root: Path) -> str:
    """The version that `_version.py` says."""
    text = (root / "src" / "crosscoders" / "_version.py").read_text(encoding="utf-8")
    return re.findall(r'^__version__ = "(.+)"$', text, re.M)[0]


def changelog_faults(text: str, *, version: str, final: bool) -> list[str]:
    """What is wrong with a changelog for this version."""
    sections = list(_SECTION.finditer(text))
    names = [section["name"] for section in sections]
    if names[:1] != ["Unreleased"]:
        return ["CHANGELOG.md: the first section is not [Unreleased]"]
    faults = [
        f"CHANGELOG.md: [{section['name']}] has no date; write '## [{section['name']}] - YYYY-MM-DD'"
        for section in sections[1:]
        if not re.fullmatch(r" - \d{4}-\d{2}-\d{2}", section["date"])
    ]
    if names[1:] and names[1] != version:
        faults.append(f"CHANGELOG.md: the newest release is [{names[1]}], the package says {version}")
    if not final:
        return faults
    if not names[1:]:
        return [*faults, f"CHANGELOG.md: no section [{version}]"]
    if text[sections[0].end() : sections[1].start()].strip():
        faults.append("CHANGELOG.md: [Unreleased] still holds something")
    return faults


def citation_faults(citation: dict[str, object], *, project: dict[str, object], version: str) -> list[str]:
    """Where CITATION.cff says something else than pyproject.toml."""
    wanted = {
        "title": project["name"],
        "version": version,
        "license": project["license"],
        "abstract": project["description"],
        "authors": [{"name": "The crosscoders authors"}],
    }
    return [
        f"CITATION.cff: {key} is {citation.get(key)!r}, expected {value!r}"
        for key, value in wanted.items()
        if citation.get(key) != value
    ]


def sdist_faults(names: set[str], *, wanted: set[str]) -> list[str]:
    """What is missing from an sdist, or in it without being a file of the repository."""
    missing = sorted(name for name in wanted - names if not _LEFT_OUT.fullmatch(name))
    surprises = sorted(names - wanted - _ADDED_BY_THE_BUILD)
    return [f"sdist misses: {name}" for name in missing] + [f"sdist surprises: {name}" for name in surprises]


def text_faults(root: Path, *, final: bool = False) -> list[str]:
    """What is wrong with what the checkout says about this version."""
    version = package_version(root)
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    return [
        *changelog_faults(changelog, version=version, final=final),
        *citation_faults(citation, project=project, version=version),
    ]


def tracked_files() -> set[str]:
    """Files that git tracks or would add, and that are there."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.splitlines() if (ROOT / name).is_file()}


def build_faults(dist: Path) -> list[str]:
    """What is wrong with the names of the two builds and with what the sdist holds."""
    version = package_version(ROOT)
    wanted = [f"crosscoders-{version}-py3-none-any.whl", f"crosscoders-{version}.tar.gz"]
    found = sorted(path.name for path in dist.iterdir())
    if found != wanted:
        return [f"{dist} holds {found}, expected {wanted}"]
    with tarfile.open(dist / wanted[1]) as archive:
        files = {member.name for member in archive if member.isfile()}
    top = f"crosscoders-{version}/"
    return sdist_faults({name.removeprefix(top) for name in files}, wanted=tracked_files())


def main() -> None:
    """Print the faults and exit 1, or print one line that says which version all of it names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dist", type=Path)
    parser.add_argument("--final", action="store_true", help="for the commit that is tagged")
    arguments = parser.parse_args()
    if faults := [*text_faults(ROOT, final=arguments.final), *build_faults(arguments.dist)]:
        sys.exit("\n".join(faults))
    print(f"crosscoders {package_version(ROOT)}: changelog, citation, wheel and sdist agree")


if __name__ == "__main__":
    main()
