"""Chromium for the browser tests, and the reports that they open.

Whatever a test does, the report must stay quiet: the fixture `visits` fails a test whose pages asked for
anything outside their folder, logged an error, or opened a dialog.
"""

import functools
import http.server
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crosscoders.pipeline.report.report import write_report
from crosscoders.report.site.writer import Site, write_site
from tests.browser.driver import CHROMIUM, Visits, chromium_path, unavailable
from tests.browser.small_run import small_run
from tests.report.synthetic_site import synthetic_site

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def chromium() -> str:
    """The system's Chromium; reports ask for it too, so that none is made where no test can open it."""
    if importlib.util.find_spec("playwright") is None:
        unavailable("playwright is not installed: pip install 'crosscoders[browser]'")
    path = chromium_path()
    if path is None:
        unavailable(f"no Chromium on the PATH ({', '.join(CHROMIUM)}): apt-get install chromium")
    assert path is not None  # `unavailable` does not return
    return path


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator["Browser"]:
    """One browser per file: beside the tests of other files neither it nor its event loop runs."""
    sync_playwright = importlib.import_module("playwright.sync_api").sync_playwright
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium)
        yield opened
        opened.close()


@pytest.fixture
def visits(browser: "Browser") -> Iterator[Visits]:
    """Opens reports; in the end none of the pages may have complained."""
    opened = Visits(browser)
    yield opened
    opened.close()
    assert opened.complaints == []


@pytest.fixture(scope="session")
def hostile_site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A report of 300 latents in which every string is an attack, as data."""
    return synthetic_site(300, figures=tmp_path_factory.mktemp("figures"))


@pytest.fixture(scope="session")
def hostile_report(chromium: str, hostile_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That report as a folder."""
    folder = tmp_path_factory.mktemp("hostile") / "report"
    write_site(folder, hostile_site)
    return folder


@pytest.fixture(scope="session")
def large_report(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 32,768 latents."""
    folder = tmp_path_factory.mktemp("large") / "report"
    write_site(folder, synthetic_site(32_768, is_hostile=False, n_text_tokens=200_000))
    return folder


@pytest.fixture(scope="session")
def real_run(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished and verified run of the bundled pair."""
    return small_run(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="session")
def real_report(real_run: Path) -> Path:
    """The report of that run."""
    return write_report(real_run)


@pytest.fixture
def serve() -> Iterator[functools.partial[str]]:
    """Serves a folder on this machine and gives its address."""
    servers: list[http.server.ThreadingHTTPServer] = []
    yield functools.partial(_serve, servers)
    for server in servers:
        server.shutdown()
        server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _serve(servers: list[http.server.ThreadingHTTPServer], folder: Path) -> str:
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    servers.append(server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"
