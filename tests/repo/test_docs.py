"""The documentation site: what it lists, where its links lead, and that it asks nobody for anything."""

import inspect
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from crosscoders.cli import main
from tests.repo.public_api import public_modules
from tests.repo.source_tree import ROOT

DOCS = ROOT / "docs"
API_PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((DOCS / "api").glob("*.md"))}
DIRECTIVES = [
    name for text in API_PAGES.values() for name in re.findall(r"^::: (crosscoders\.[\w.]+)$", text, re.M)
]


def site_config() -> dict:
    """mkdocs.yml as data."""
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def nav_pages(entries: list) -> list[str]:
    """The pages of a navigation, in order."""
    found: list[str] = []
    for entry in entries:
        for value in entry.values():
            found += nav_pages(value) if isinstance(value, list) else [value]
    return found


def public_objects() -> dict[int, str]:
    """Everything public but the modules by its identity, with the first of its names."""
    found: dict[int, str] = {}
    for module_name, module in public_modules().items():
        for name in module.__all__:
            value = getattr(module, name)
            if not inspect.ismodule(value) and name != "__version__":
                found.setdefault(id(value), f"{module_name}.{name}")
    return found


def test_every_public_name_stands_on_exactly_one_api_page() -> None:
    wanted = public_objects()
    shown = Counter(id(pkgutil.resolve_name(name)) for name in DIRECTIVES)
    assert [name for each, name in wanted.items() if each not in shown] == [], "add them to docs/api/"
    assert [wanted[each] for each, n in shown.items() if n > 1] == []
    assert [name for name in DIRECTIVES if id(pkgutil.resolve_name(name)) not in wanted] == []


def test_the_api_overview_names_every_public_module() -> None:
    told = set(re.findall(r"`(crosscoders\.\w+)`", API_PAGES["index.md"]))
    public = {".".join(name.split(".")[:2]) for name in public_modules()} - {"crosscoders"}
    assert told == public
    assert "cc.__version__" in API_PAGES["index.md"]


def test_every_page_is_in_the_navigation_once() -> None:
    listed = nav_pages(site_config()["nav"])
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_every_docs_path_that_the_repository_names_exists() -> None:
    folders = ("src", "examples", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.*")]
    files = [path for path in files if path.suffix in {".py", ".md", ".toml"}]
    missing = [
        f"{path.name}: {name}"
        for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *files)
        for name in re.findall(r"(?<![\w/])docs/[\w/-]+\.\w+", path.read_text(encoding="utf-8"))
        if not (ROOT / name).is_file()
    ]
    assert missing == []


@pytest.mark.parametrize(
    "page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.relative_to(DOCS).as_posix()
)
def test_links_lead_to_pages_and_headings(page: Path) -> None:
    for target in re.findall(r"(?<!!)\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.is_file(), f"{page.name} links to {target}, which does not exist"
        assert not anchor or anchor in anchors(other), f"{page.name}: {other.name} has no heading {anchor!r}"


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as Python-Markdown makes them."""
    heads = re.findall(r"^#{1,6} (.+)$", page.read_text(encoding="utf-8"), re.M)
    plain = [re.sub(r"[^\w\s-]", "", head.replace("`", "")).strip().lower() for head in heads]
    return {re.sub(r"[-\s]+", "-", head) for head in plain}


def test_the_report_page_lists_the_options_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    known = set(re.findall(r"^  (--[\w-]+)", capsys.readouterr().out, re.M))
    page = (DOCS / "report.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(--[\w-]+)", page, re.M)) == known != set()


def test_the_site_is_configured_to_ask_nobody() -> None:
    config = site_config()
    assert config["theme"]["font"] is False
    assert config["strict"] is True
    assert config["use_directory_urls"] is False
    (mkdocstrings,) = [plugin for plugin in config["plugins"] if isinstance(plugin, dict)]
    assert mkdocstrings["mkdocstrings"]["handlers"]["python"]["inventories"] == []
    assert "iframe-worker" in config["extra"]["polyfills"][0]  # or the plugin `offline` takes one from a CDN
    for asset in (*config["extra"]["polyfills"], *config["extra_css"]):
        assert (DOCS / asset).is_file()


class Assets(HTMLParser):
    """Collects what a page loads by itself: scripts, styles, images, frames."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in {"script", "img", "iframe", "source", "embed", "audio", "video"}:
            self.loaded += [values.get("src") or "", values.get("srcset") or ""]
        if tag == "link" and values.get("rel") not in {"canonical", "prev", "next"}:
            self.loaded.append(values.get("href") or "")


def test_what_a_page_loads_is_found() -> None:
    page = Assets()
    page.feed(
        '<script src="https://a.b/c.js"></script><a href="https://d.e">x</a><link rel="icon" href="f.png">'
    )
    assert {name for name in page.loaded if name} == {"https://a.b/c.js", "f.png"}


@pytest.mark.slow
def test_the_built_site_is_whole_and_loads_nothing_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    for path in tmp_path.rglob("*.html"):
        page = Assets()
        page.feed(path.read_text(encoding="utf-8"))
        assert [name for name in page.loaded if re.match(r"(https?:)?//", name)] == [], path.name
    api = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "api").glob("*.html"))
    assert 'id="crosscoders.Crosscoder.encode"' in api
    assert not re.search(r"&#39; \w+&#39;", api), "the shape of one axis shows with its linter's space"
    # Where a function and its module have one name, only the function's whole path means the function.
    assert "doc-symbol-module" not in api
