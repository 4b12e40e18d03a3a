"""Takes pictures of a report: each page, light and dark, as wide as a screen and as a phone.

Usage: python .ci/screenshots.py runs/demo/report pictures [--latent 350]

Without --latent the latent page is the first of those that the overview calls worth a look, or latent 0.
"""

import argparse
import itertools
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS = {1280: 900, 390: 844}
_LATENT_LINK = "main a[href^='#/latent/']"
_READY = """() => new Promise((resolve) => {
  const look = () => (window.reportReady === true ? resolve() : setTimeout(look, 10));
  requestAnimationFrame(() => requestAnimationFrame(look));
})"""

# Images below the first screen load when they come into view; a picture of the whole page wants them all.
_ALL_IMAGES = """() => Promise.all([...document.images].map((image) => {
  image.loading = "eager";
  return image.decode();
}))"""


def open_view(browser: Browser, report: Path, fragment: str, *, width: int, scheme: str) -> Page:
    """A fresh window on one view of the report."""
    page = browser.new_page(
        viewport={"width": width, "height": WIDTHS[width]},
        color_scheme="dark" if scheme == "dark" else "light",
        reduced_motion="reduce",
    )
    page.on("console", lambda message: print(f"{fragment} console {message.type}: {message.text}"))
    page.on("pageerror", lambda error: print(f"{fragment} page error: {error}"))
    page.goto(f"{report.resolve().as_uri()}/index.html{fragment}")
    page.evaluate(_READY)
    return page


def first_latent(browser: Browser, report: Path) -> str:
    """The address of the first latent that the overview links to."""
    page = open_view(browser, report, "#/", width=1280, scheme="light")
    links = page.locator(_LATENT_LINK)
    link = links.first.get_attribute("href") if links.count() else None
    page.close()
    return link or "#/latent/0"


def main() -> None:
    """Write PAGE-SCHEME-WIDTH.png, the whole length of each page, into the folder asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--latent", type=int)
    arguments = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("no Chromium on the PATH: apt-get install chromium")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=chromium) as browser:
        chosen = arguments.latent
        latent = first_latent(browser, arguments.report) if chosen is None else f"#/latent/{chosen}"
        views = {"overview": "#/", "browser": "#/latents", "latent": latent, "experiments": "#/experiments"}
        for (name, fragment), scheme, width in itertools.product(views.items(), ("light", "dark"), WIDTHS):
            page = open_view(browser, arguments.report, fragment, width=width, scheme=scheme)
            page.evaluate(_ALL_IMAGES)
            page.screenshot(path=arguments.out / f"{name}-{scheme}-{width}.png", full_page=True)
            page.close()


if __name__ == "__main__":
    main()
