"""A Hub that a test may use in this process, and nothing else of the network."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.hub.stand_in import StandIn, running


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    """A stand-in, with the settings that `huggingface_hub` read from the environment pointed at it.

    That HF_ENDPOINT itself works is asserted in processes of their own (test_processes.py).
    """
    with running() as server:
        settings = {
            "HF_HUB_OFFLINE": False,
            "ENDPOINT": server.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DOWNLOAD_TIMEOUT": 2,
            "HF_HUB_ETAG_TIMEOUT": 2,
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr("crosscoders.hub.download._WAIT_SECONDS", 0.01)
        try:
            yield server
        finally:
            huggingface_hub.close_session()
