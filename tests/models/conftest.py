"""Real and derived configs by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.models.derived_configs import DERIVED, derived_config


@pytest.fixture
def config_of(data_file: Callable[[str], Path]) -> Callable[[str], dict[str, Any]]:
    def read(name: str) -> dict[str, Any]:
        return json.loads(data_file(f"configs/{name}.json").read_text())

    return lambda name: derived_config(name, read) if name in DERIVED else read(name)
