"""Without a browser its tests skip with the reason, or fail where one is required."""

import pytest

from tests.browser.driver import REQUIRED, chromium_path, unavailable


def test_without_a_browser_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Chromium"):
        unavailable("no Chromium")


def test_where_a_browser_is_required_nothing_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match=f"{REQUIRED} is set, but no Chromium"):
        unavailable("no Chromium")


def test_no_browser_is_found_on_an_empty_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert chromium_path() is None
