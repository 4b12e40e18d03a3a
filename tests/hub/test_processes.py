"""The real thing: processes of their own that find the stand-in through HF_ENDPOINT."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hub.stand_in import Fault, running
from tests.hub.toys import files_of, saved

NAME = "someone/cross"
ROOT = Path(__file__).resolve().parents[2]
PULL = f"from crosscoders.hub import pull; print(pull('{NAME}'))"
PUSH_AND_PULL = f"""
import sys, torch
import crosscoders.hub as hub
from tests.hub.toys import toy, rows
commit = hub.push_to_hub(toy(), "{NAME}", subfolder="k3", token="secret")
again = hub.from_pretrained("{NAME}", subfolder="k3", revision="main", token="secret")
assert again.origin == f"{NAME}@{{commit}}:k3", again.origin
assert torch.equal(again.reconstruct(rows()), toy().reconstruct(rows()))
print("done")
"""


def environment(endpoint: str, home: Path) -> dict[str, str]:
    """What a user would set, and nothing of the machine's own account."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return {**kept, **settings, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def start(code: str, env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_push_and_pull_through_hf_endpoint(tmp_path: Path) -> None:
    with running() as hub:
        child = start(PUSH_AND_PULL, environment(hub.endpoint, tmp_path / "home"))
        out, _ = child.communicate(timeout=120)
        assert child.returncode == 0
        assert out.splitlines()[-1] == "done"
        assert sorted(hub.files(NAME)) == [
            ".gitattributes",
            "k3/README.md",
            "k3/config.json",
            "k3/model.safetensors",
        ]


@pytest.mark.slow
def test_a_killed_download_is_resumed_by_the_next_process(tmp_path: Path) -> None:
    saved(tmp_path / "a", n_latents=20_000)
    files = files_of(tmp_path / "a")
    with running() as hub:
        hub.add(NAME, files)
        hub.faults += [Fault("GET /large", drop_after=1_000_000, hold_seconds=120)]
        env = environment(hub.endpoint, tmp_path / "home")
        killed = start(PULL, env)
        have = wait_for_partial(tmp_path / "home")
        killed.kill()
        killed.communicate()
        assert not list((tmp_path / "home").rglob("*.safetensors"))
        child = start(PULL, env)
        out, _ = child.communicate(timeout=120)
        ranges = [seen.headers.get("range") for seen in hub.lines("GET /large")]
    assert ranges == [None, f"bytes={have}-"]
    assert (Path(out.strip()) / "model.safetensors").read_bytes() == files["model.safetensors"]


def wait_for_partial(home: Path) -> int:
    """Wait until a download has come to a halt, and give the bytes that it has."""
    deadline, last = time.monotonic() + 60, -1
    while time.monotonic() < deadline:
        time.sleep(0.3)
        sizes = [path.stat().st_size for path in home.rglob("*.incomplete")]
        if sizes and sizes[0] == last and last > 0:
            return last
        last = sizes[0] if sizes else -1
    raise AssertionError("no partial file appeared")
