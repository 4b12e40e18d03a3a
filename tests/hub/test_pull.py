"""From the Hub to the cache: exactly what is needed, resumed, checked, and never half under its name."""

import os
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, hf_hub_download, scan_cache_dir

from crosscoders._io import member_path, sha256_file
from crosscoders.errors import CheckpointError
from crosscoders.hub import from_pretrained, pull
from tests.hub.stand_in import Fault, StandIn
from tests.hub.toys import files_of, rewrite, rows, saved, toy

NAME = "someone/cross"


def added(hub: StandIn, tmp_path: Path, *, subfolder: str = "", **options: int) -> dict[str, bytes]:
    """A repository with an artifact and a file that nobody asked for."""
    saved(tmp_path / "artifact", **options)
    files = files_of(tmp_path / "artifact", subfolder=subfolder)
    hub.add(NAME, {**files, "notes.bin": b"x" * 4000})
    return files


def names_under(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def test_a_pulled_crosscoder_is_the_pushed_one_and_names_its_commit(hub: StandIn, tmp_path: Path) -> None:
    added(hub, tmp_path)
    crosscoder = from_pretrained(NAME)
    assert torch.equal(crosscoder.reconstruct(rows()), toy().reconstruct(rows()))
    assert crosscoder.origin == f"{NAME}@{hub.repositories[NAME].branches['main']}"
    assert not crosscoder.training


def test_only_what_the_config_lists_is_downloaded(hub: StandIn, tmp_path: Path) -> None:
    files = added(hub, tmp_path)
    folder = pull(NAME)
    assert names_under(folder) == sorted(files)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert not hub.lines("notes")
    assert [seen.line.rsplit("/")[-1] for seen in hub.lines("^HEAD .*resolve")] == sorted(files)


def test_the_token_goes_to_the_hub_and_not_to_its_storage(hub: StandIn, tmp_path: Path) -> None:
    saved(tmp_path / "artifact")
    hub.add(NAME, files_of(tmp_path / "artifact"), token="secret")
    pull(NAME, token="secret")
    assert all(seen.headers["authorization"] == "Bearer secret" for seen in hub.lines(r"/api|/resolve"))
    large = hub.lines("GET /large")
    assert large
    assert not any("authorization" in seen.headers for seen in large)


def test_a_revision_is_resolved_once_and_pinned(hub: StandIn, tmp_path: Path) -> None:
    added(hub, tmp_path)
    old = hub.repositories[NAME].branches["main"]
    saved(tmp_path / "new", seed=5)
    new = hub.add(NAME, files_of(tmp_path / "new"))
    assert from_pretrained(NAME, revision=old).origin == f"{NAME}@{old}"
    assert from_pretrained(NAME).origin == f"{NAME}@{new}"
    assert torch.equal(from_pretrained(NAME, revision=old).W_enc, toy().W_enc)
    assert not torch.equal(from_pretrained(NAME).W_enc, toy().W_enc)
    assert all(re.search(f"/resolve/({old}|{new})/", seen.line) for seen in hub.lines("/resolve/"))


def test_a_pinned_commit_that_is_there_asks_nobody(hub: StandIn, tmp_path: Path) -> None:
    added(hub, tmp_path)
    commit = hub.repositories[NAME].branches["main"]
    first = pull(NAME, revision=commit)
    hub.seen.clear()
    assert pull(NAME, revision=commit) == first
    assert hub.seen == []


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_the_cache_serves_offline(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    added(hub, tmp_path)
    first = pull(NAME)
    hub.seen.clear()
    if how == "environment":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull(NAME, local_files_only=how == "argument") == first
    assert hub.seen == []


def test_offline_without_a_whole_copy_says_so(hub: StandIn, tmp_path: Path) -> None:
    added(hub, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"someone/cross@main is not complete.*local_files_only"):
        pull(NAME, local_files_only=True)
    folder = pull(NAME)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="not complete"):
        pull(NAME, local_files_only=True)
    assert hub.lines("GET /large")


def test_sub_folders_hold_a_sweep(hub: StandIn, tmp_path: Path) -> None:
    for seed in (1, 2):
        saved(tmp_path / f"k{seed}", seed=seed)
    both = {f"sweep/{n}/{k}": v for n in ("k1", "k2") for k, v in files_of(tmp_path / n).items()}
    commit = hub.add(NAME, both)
    for seed in (1, 2):
        crosscoder = from_pretrained(NAME, subfolder=f"sweep/k{seed}/")
        assert torch.equal(crosscoder.W_enc, toy(seed=seed).W_enc)
        assert crosscoder.origin == f"{NAME}@{commit}:sweep/k{seed}"
    hub.add("someone/other", {**both, "README.md": b"hi"})
    with pytest.raises(CheckpointError, match=r"no crosscoder.*'sweep/k1', 'sweep/k2'"):
        pull("someone/other")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        pull(NAME, subfolder="sweep/k3")


def test_a_dropped_connection_goes_on_where_it_was(hub: StandIn, tmp_path: Path) -> None:
    files = added(hub, tmp_path, n_latents=5000)
    size = len(files["model.safetensors"])
    hub.faults += [Fault("GET /large", drop_after=200_000), Fault("GET /large", drop_after=100_000)]
    folder = pull(NAME)
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    asked = [seen.headers.get("range") for seen in hub.lines("GET /large")]
    assert asked[0] is None
    assert asked[1:] == ["bytes=200000-", "bytes=300000-"]
    assert sum(seen.sent_bytes for seen in hub.lines("GET /large")) == size


def test_a_call_that_failed_is_resumed_by_the_next(hub: StandIn, tmp_path: Path) -> None:
    files = added(hub, tmp_path, n_latents=5000)
    hub.faults += [Fault("GET /large", drop_after=123_456), Fault("GET /large", status=503, times=4)]
    with pytest.raises(ConnectionError, match=r"model.safetensors: the Hub failed \(503\)"):
        pull(NAME)
    cache = Path(constants.HF_HUB_CACHE)
    assert [name for name in names_under(cache) if "snapshots" in name and "config.json" not in name] == []
    assert [path.stat().st_size for path in cache.rglob("*.incomplete")] == [123_456]
    with pytest.raises(FileNotFoundError, match="not complete"):
        pull(NAME, local_files_only=True)
    hub.seen.clear()
    folder = pull(NAME)
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert [seen.headers["range"] for seen in hub.lines("GET /large")] == ["bytes=123456-"]
    assert not list(cache.rglob("*.incomplete"))


def test_a_server_without_ranges_starts_anew(hub: StandIn, tmp_path: Path) -> None:
    files = added(hub, tmp_path, n_latents=5000)
    hub.faults += [Fault("GET /large", drop_after=50_000), Fault("GET /large", ignore_range=True)]
    assert (pull(NAME) / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_a_connection_that_brings_nothing_ends_in_an_error(hub: StandIn, tmp_path: Path) -> None:
    added(hub, tmp_path)
    hub.faults += [Fault("GET /large", drop_after=0, times=100)]
    with pytest.raises(ConnectionError, match="connection to the Hub failed"):
        pull(NAME)
    assert len(hub.lines("GET /large")) == 4


def test_a_stalled_server_times_out(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added(hub, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    hub.faults += [Fault("GET /api", stall_seconds=0.5)]
    with pytest.raises(ConnectionError, match="Timeout"):
        pull(NAME)


STATUS = [(401, PermissionError), (403, PermissionError), (404, FileNotFoundError), (429, ConnectionError)]
STATUS += [(500, ConnectionError), (503, ConnectionError), (418, OSError)]


@pytest.mark.parametrize("at", ["GET /api/models", "HEAD .*config.json", "HEAD .*safetensors", "GET /large"])
@pytest.mark.parametrize(("status", "error"), STATUS)
def test_each_refusal_has_its_type_and_leaves_nothing(
    hub: StandIn, tmp_path: Path, at: str, status: int, error: type[OSError]
) -> None:
    added(hub, tmp_path)
    hub.faults += [Fault(at, status=status, times=100)]
    with pytest.raises(OSError, match=f"someone/cross@.*{status}") as caught:
        pull(NAME)
    assert type(caught.value) is error
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*safetensors"))


def test_what_does_not_exist_or_is_private_says_so(hub: StandIn, tmp_path: Path) -> None:
    added(hub, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder 'nobody/nothing' here.*no such repository"):
        from_pretrained("nobody/nothing")
    with pytest.raises(FileNotFoundError, match="no such repository, revision or file"):
        pull(NAME, revision="v9")
    hub.repositories[NAME].token = "secret"
    with pytest.raises(PermissionError, match=r"private or gated.*token="):
        pull(NAME, token=False)


def test_bytes_changed_on_the_way_raise_and_are_thrown_away(hub: StandIn, tmp_path: Path) -> None:
    files = added(hub, tmp_path)
    hub.faults += [Fault("GET /large", flip_byte=700)]
    with pytest.raises(CheckpointError, match=r"model.safetensors: expected SHA-256"):
        pull(NAME)
    assert [sha256_file(path) for path in Path(constants.HF_HUB_CACHE).rglob("*.incomplete")] == []
    assert (pull(NAME) / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_weights_that_belong_to_another_config_raise(hub: StandIn, tmp_path: Path) -> None:
    files = added(hub, tmp_path)
    saved(tmp_path / "other", seed=9)
    hub.add(NAME, {**files, "model.safetensors": (tmp_path / "other" / "model.safetensors").read_bytes()})
    with pytest.raises(CheckpointError, match="belongs to other weights"):
        pull(NAME)
    hub.add(NAME, {**files, "model.safetensors": files["model.safetensors"] + b"more"})
    with pytest.raises(CheckpointError, match=r"config.json says \d+ bytes, the repository has"):
        pull(NAME)
    hub.add(NAME, {"config.json": files["config.json"]})
    with pytest.raises(CheckpointError, match=r"lists \['model.safetensors'\], which the repository lacks"):
        pull(NAME)


@pytest.mark.parametrize("name", ["../../outside", "/etc/outside", "a/../../b", "..", "c:\\x", "a\nb"])
def test_a_listed_name_that_leads_out_is_refused_before_it_is_fetched(
    hub: StandIn, tmp_path: Path, name: str
) -> None:
    saved(tmp_path / "artifact")
    entries = {"sha256": "0" * 64, "bytes": 5}
    rewrite(tmp_path / "artifact", files={"model.safetensors": entries, name: entries})
    hub.add(NAME, {**files_of(tmp_path / "artifact"), name: b"outside"})
    with pytest.raises(CheckpointError, match="not the name of a file inside"):
        pull(NAME)
    assert not list(tmp_path.rglob("*outside*"))


def test_pickles_alone_are_not_even_downloaded(hub: StandIn) -> None:
    hub.add(NAME, {"cfg.json": b"{}", "cc_weights.pt": b"\x80\x04" * 900})
    with pytest.raises(CheckpointError, match=r"cc_weights.pt.*crosscoders convert"):
        pull(NAME)
    assert not hub.lines("/resolve/")


@pytest.mark.parametrize(
    ("repo_id", "options"),
    [
        ("no-owner", {}),
        ("a/b/c", {}),
        ("../x", {}),
        ("a/b", {"revision": "../../x"}),
        ("a/b", {"subfolder": "../x"}),
        ("a/b", {"subfolder": "/x"}),
        ("a/b--c", {}),
        ("a/" + "b" * 100, {}),
    ],
)
def test_names_that_cannot_be_are_refused_without_asking(
    hub: StandIn, repo_id: str, options: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match="hub: "):
        pull(repo_id, **options)
    assert hub.seen == []


def test_an_answer_that_is_no_hubs_is_refused(hub: StandIn, tmp_path: Path) -> None:
    added(hub, tmp_path)
    hub.faults += [Fault("GET /api/models", status=200)]
    with pytest.raises(ConnectionError, match="HF_ENDPOINT"):
        pull(NAME)
    for fault in (Fault("HEAD", status=200), Fault("HEAD", headers={"X-Repo-Commit": "0" * 40})):
        hub.faults += [fault]
        with pytest.raises(ConnectionError, match="HF_ENDPOINT"):
            pull(NAME)


def test_snapshot_links_are_those_of_the_cache_and_readable(hub: StandIn, tmp_path: Path) -> None:
    added(hub, tmp_path)
    folder = pull(NAME)
    assert (folder / "model.safetensors").is_symlink()
    assert os.readlink(folder / "model.safetensors").startswith("../../blobs/")
    assert member_path(folder, "model.safetensors").is_file()
    assert from_pretrained(folder).origin is None


def test_the_cache_is_shared_with_huggingface_hub(hub: StandIn, tmp_path: Path) -> None:
    files = added(hub, tmp_path)
    pull(NAME)
    hub.seen.clear()
    path = hf_hub_download(NAME, "model.safetensors", local_files_only=True)
    assert Path(path).read_bytes() == files["model.safetensors"]
    assert not hub.lines("GET /large")
    info = scan_cache_dir(constants.HF_HUB_CACHE)
    assert not info.warnings
    assert [(repo.repo_id, sorted(repo.refs)) for repo in info.repos] == [(NAME, ["main"])]


def test_a_branch_whose_name_continues_that_of_a_deleted_one_is_pulled(hub: StandIn, tmp_path: Path) -> None:
    added(hub, tmp_path)
    branches = hub.repositories[NAME].branches
    for name in ("sweep", "sweep/k3", "sweep"):
        branches[name] = branches["main"]
        assert pull(NAME, revision=name).name == branches["main"]


def test_what_the_cache_holds_already_writes_nothing(hub: StandIn, tmp_path: Path) -> None:
    """So that a cache which may only be read serves what it has."""
    added(hub, tmp_path)
    folder = pull(NAME)
    state = {path: path.lstat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    assert pull(NAME) == folder
    assert {path: path.lstat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == state
