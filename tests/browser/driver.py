"""Opens a report in the system's Chromium, and notes what it asks for and what it complains about."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

REQUIRED = "CROSSCODERS_REQUIRE_BROWSER"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_WAIT_MS = 20_000
# Under the report's content security policy a page evaluates no strings later on, so that playwright's own
# wait_for_function fails; a function that is handed over once may wait.
_SETTLED = """() => new Promise((resolve, reject) => {
  const end = performance.now() + WAIT;
  const look = () => {
    if (window.reportReady === true) resolve();
    else if (performance.now() > end) reject(new Error("the page was not ready in time: " + location.hash));
    else setTimeout(look, 5);
  };
  requestAnimationFrame(() => requestAnimationFrame(look));
})""".replace("WAIT", str(_WAIT_MS))


def unavailable(reason: str) -> None:
    """Skip, or fail where a browser is required: `.ci/run` sets the variable, so that nothing is left out."""
    if os.environ.get(REQUIRED):
        pytest.fail(f"{REQUIRED} is set, but {reason}")
    pytest.skip(reason)


def chromium_path() -> str | None:
    """The system's Chromium."""
    return next((path for name in CHROMIUM if (path := shutil.which(name))), None)


@dataclass
class Visits:
    """The pages that one test opened, what they asked for, and what went wrong in any of them."""

    browser: "Browser"
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open(
        self, report: Path | str, fragment: str = "#/", *, width: int = 1280, scheme: str = "light"
    ) -> "Page":
        """A fresh window on a report, given as its folder or as the address where it is served."""
        root = report if isinstance(report, str) else report.resolve().as_uri() + "/"
        context = self.browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,  # pyright: ignore[reportArgumentType]
            reduced_motion="reduce",
        )
        context.set_default_timeout(_WAIT_MS)
        page = context.new_page()
        self._watch(page, root)
        page.goto(f"{root}index.html{fragment}")
        settle(page)
        return page

    def _watch(self, page: "Page", root: str) -> None:
        complaints = self.complaints

        def asked(url: str) -> None:
            self.requests.append(url)
            if not url.startswith((root, "data:", "blob:")):
                complaints.append(f"request outside of the report: {url}")

        def said(message: "ConsoleMessage") -> None:
            if message.type in {"error", "warning"}:
                complaints.append(f"console {message.type}: {message.text}")

        page.on("request", lambda request: asked(request.url))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
        page.on("console", said)
        page.on("pageerror", lambda error: complaints.append(f"page error: {error}"))
        page.on("popup", lambda popup: complaints.append(f"a window was opened: {popup.url}"))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def close(self) -> None:
        """Close every window; the complaints stay."""
        for context in self.browser.contexts:
            context.close()


def settle(page: "Page") -> None:
    """Wait until the page has drawn what its address asks for."""
    page.evaluate(_SETTLED)


def go(page: "Page", fragment: str) -> None:
    """Go to another view of the same window, as a link would."""
    page.evaluate("(fragment) => { location.hash = fragment; }", fragment)
    settle(page)


def fragment(page: "Page") -> str:
    """The address of the view, from its "#" on."""
    return page.evaluate("() => location.hash")
