"""Checkpoints of several ranks: any number of ranks goes on from them, and no damage goes unseen."""

import json
import os
import pickle
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from crosscoders._io import file_entry, write_manifest
from crosscoders.activation_fns import BatchTopK, JumpReLU, ReLU, TopK
from crosscoders.errors import CheckpointError
from crosscoders.losses import JumpReLUL0, Reconstruction
from crosscoders.training import Trainer
from crosscoders.training.checkpoints.files import latest_checkpoint, write_checkpoint
from crosscoders.training.checkpoints.state import latent_keys
from tests.core.toy import toy_crosscoder
from tests.parallel.checkpoint_run import (
    ENDS,
    EVERY,
    N_STEPS,
    Shape,
    assert_same_state,
    batches,
    copy_of,
    mesh_of,
    resume_only,
    save_whole,
    train,
    trainer_on,
)
from tests.parallel.rank_pool import on_ranks

GRID, LATENTS, DATA = {"data": 2, "latents": 2}, {"latents": 4}, {"data": 4}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one process that nothing disturbed; its last step has a checkpoint."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train(str(folder), {})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs that ended behind their first checkpoint, by who wrote it."""
    shapes: dict[str, Shape] = {"grid": GRID, "latents": LATENTS, "one": {}}
    folders = {name: tmp_path_factory.mktemp(name) for name in shapes}
    for name, shape in shapes.items():
        assert_ends(folders[name], shape)
    return folders


def assert_ends(folder: Path, shape: Shape) -> None:
    assert set(on_shape(shape, train, folder=str(folder), ends_after=ENDS)) == {ENDS}
    assert [path.name for path in folder.iterdir()] == [f"step-{EVERY:09d}"]


def on_shape(shape: Shape, function: Any, **kwargs: Any) -> list[Any]:
    """Call a function on the ranks of a mesh, or here where there is none."""
    if not shape:
        return [function(shape=shape, **kwargs)]
    n = int(torch.tensor(list(shape.values())).prod())
    return on_ranks(n, function, shape=shape, **kwargs)


ROUTES: list[tuple[str, Shape]] = [
    ("grid", {}),
    ("grid", {"data": 3}),
    ("latents", {"latents": 3}),
    ("latents", {"data": 2}),
    ("one", GRID),
]
MORE_ROUTES: list[tuple[str, Shape]] = [
    ("grid", {"latents": 2}),
    ("grid", LATENTS),
    ("latents", {}),
    ("latents", GRID),
    ("one", {"latents": 3}),
    ("one", DATA),
]


@pytest.mark.parametrize(
    ("writer", "shape"), [*ROUTES, *(pytest.param(*r, marks=pytest.mark.slow) for r in MORE_ROUTES)], ids=str
)
def test_any_number_of_ranks_goes_on_to_the_same_weights(
    tmp_path: Path, runs: dict[str, Path], undisturbed: Path, writer: str, shape: Shape
) -> None:
    folder = copy_of(runs[writer], to=tmp_path / "run")
    assert set(on_shape(shape, train, folder=folder)) == {N_STEPS}
    assert_same_state(Path(folder), undisturbed)


@pytest.mark.slow
def test_a_run_may_change_its_ranks_at_every_checkpoint(tmp_path: Path, undisturbed: Path) -> None:
    shapes: list[Shape] = [{"latents": 4}, {}, GRID, {"data": 3}, {"latents": 2}]
    for i, shape in enumerate(shapes):
        on_shape(shape, train, folder=str(tmp_path), ends_after=i + 2, checkpoint_every_steps=1)
        assert latest_checkpoint(tmp_path).name == f"step-{i + 1:09d}"
    on_shape({"latents": 3}, train, folder=str(tmp_path), checkpoint_every_steps=1)
    assert_same_state(tmp_path, undisturbed)


@pytest.mark.slow
def test_learned_thresholds_are_spread_with_their_latents(tmp_path: Path) -> None:
    options = {"activation_fn": JumpReLU(), "objective": [Reconstruction(), JumpReLUL0(weight=0.1)]}
    train(str(tmp_path / "whole"), {}, **options)
    on_shape(GRID, train, folder=str(tmp_path / "run"), ends_after=ENDS, **options)
    on_shape({"latents": 3}, train, folder=str(tmp_path / "run"), **options)
    assert_same_state(tmp_path / "run", tmp_path / "whole")


def test_the_keys_of_latents_are_found_whatever_the_activation_function() -> None:
    own = {"W_enc", "b_enc", "W_dec", "selection_weight"}
    for activation_fn in (ReLU(), TopK(k=3), BatchTopK(k=3)):
        assert latent_keys(toy_crosscoder(activation_fn).config) == own
    assert latent_keys(toy_crosscoder(JumpReLU()).config) == own | {"activation.log_threshold"}


def flips(content: bytes, *, n: int) -> Iterator[bytes]:
    """The content with one bit flipped, at n places from the first byte to the last."""
    for i in range(n):
        at = i * (len(content) - 1) // (n - 1)
        changed = bytearray(content)
        changed[at] ^= 1 << (i % 8)
        yield bytes(changed)


def test_damage_of_any_file_is_seen_before_anything_is_loaded(tmp_path: Path, runs: dict[str, Path]) -> None:
    folder = copy_of(runs["grid"], to=tmp_path / "run")
    files = sorted(latest_checkpoint(Path(folder)).iterdir())
    names = {".metadata", "checkpoint.json", "rest.pt", *(f"__{rank}_0.distcp" for rank in range(4))}
    assert {file.name for file in files} == names
    for file in files:
        content = file.read_bytes()
        for changed in (*flips(content, n=8), content[:-1], None):
            file.unlink()
            if changed is not None:
                file.write_bytes(changed)
            said, is_untouched = resume_only(folder, {})
            assert (said.split(":")[0], is_untouched) == ("CheckpointError", True)
            file.write_bytes(content)


def test_ranks_see_damage_together(tmp_path: Path, runs: dict[str, Path]) -> None:
    for writer, name in (("grid", "__2_0.distcp"), ("one", "state.pt"), ("latents", "checkpoint.json")):
        folder = copy_of(runs[writer], to=tmp_path / writer)
        file = latest_checkpoint(Path(folder)) / name
        file.write_bytes(next(flips(file.read_bytes(), n=2)))
        answers = on_ranks(2, resume_only, folder=folder, shape={"latents": 2})
        assert [(said.split(":")[0], fine) for said, fine in answers] == [("CheckpointError", True)] * 2
        assert all(name in said for said, _ in answers)


def test_metadata_that_names_something_to_call_is_refused(tmp_path: Path, runs: dict[str, Path]) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "called"),)

    path = latest_checkpoint(Path(copy_of(runs["grid"], to=tmp_path / "run")))
    (path / ".metadata").write_bytes(pickle.dumps(Hostile()))
    manifest = json.loads((path / "checkpoint.json").read_text())
    files = {**manifest["files"], ".metadata": file_entry(path / ".metadata")}
    write_manifest(path / "checkpoint.json", {"step": EVERY, "layout": manifest["layout"], "files": files})
    with pytest.raises(CheckpointError, match=r"names posix\.mkdir"):
        trainer_on(None, None).resume(path)
    assert not (tmp_path / "called").exists()


def write_with_little_room(folder: str, shape: Shape) -> tuple[str, int]:
    """Go on from a checkpoint to the next, which rank 1 has no room to write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        train(folder, shape)
    except OSError as err:
        return type(err).__name__, err.errno or 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return "nothing", 0


def test_a_rank_that_cannot_write_leaves_the_older_checkpoint(
    tmp_path: Path, runs: dict[str, Path], undisturbed: Path
) -> None:
    folder = copy_of(runs["latents"], to=tmp_path / "run")
    answers = on_ranks(4, write_with_little_room, folder=folder, shape=LATENTS)
    assert {kind for kind, _ in answers} == {"OSError"}
    assert [path.name for path in Path(folder).iterdir()] == [f"step-{EVERY:09d}"]
    on_shape(LATENTS, train, folder=folder)
    assert_same_state(Path(folder), undisturbed)


@pytest.mark.slow
def test_what_a_killed_run_was_writing_is_ignored_and_then_removed(
    tmp_path: Path, runs: dict[str, Path]
) -> None:
    folder = Path(copy_of(runs["grid"], to=tmp_path / "run"))
    left = folder / f".step-{2 * EVERY:09d}.123.0123abcd.tmp"
    shutil.copytree(latest_checkpoint(folder), left)
    assert latest_checkpoint(folder).name == f"step-{EVERY:09d}"
    on_shape(GRID, train, folder=str(folder))
    assert not left.exists()


def test_the_newest_checkpoints_and_all_milestones_are_kept(tmp_path: Path) -> None:
    for step in range(1, 13):
        write_checkpoint(tmp_path, {"step": step}, step=step, kept=3, milestone_every_steps=4)
    assert sorted(int(path.name[-9:]) for path in tmp_path.iterdir()) == [4, 8, 10, 11, 12]


def test_ranks_keep_what_the_config_asks_for(tmp_path: Path) -> None:
    numbers = {"checkpoint_every_steps": 1, "checkpoints_kept": 1, "milestone_every_steps": 2}
    on_shape({"data": 2}, train, folder=str(tmp_path), ends_after=ENDS + 1, **numbers)
    assert sorted(int(path.name[-9:]) for path in tmp_path.iterdir()) == [2, ENDS]


@pytest.mark.parametrize("shape", [GRID, {"latents": 3}, DATA], ids=str)
def test_the_artifact_is_the_same_whatever_the_number_of_ranks(
    tmp_path: Path, undisturbed: Path, shape: Shape
) -> None:
    trainer = trainer_on(None, None)
    trainer.resume(undisturbed)
    trainer.crosscoder.save_pretrained(tmp_path / "one")
    on_shape(shape, save_whole, folder=str(undisturbed), out=str(tmp_path / "ranks"))
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "ranks" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


class WithOwnState(Trainer):
    """Adds to the state what is not the same on every rank."""

    def state_dict(self) -> dict[str, Any]:
        """The state and this rank's number."""
        return {**super().state_dict(), "own": torch.tensor(dist.get_rank())}


def save_own_state(folder: str, shape: Shape) -> str:
    try:
        trainer_on(mesh_of(shape), folder, cls=WithOwnState).fit(batches())
    except ValueError as err:
        return str(err)
    return "nothing"


def test_own_tensors_that_differ_between_ranks_are_refused_by_name(tmp_path: Path) -> None:
    said = on_ranks(2, save_own_state, folder=str(tmp_path), shape={"data": 2})
    assert ["['own'] differ between ranks" in text for text in said] == [True, True]
    assert list(tmp_path.iterdir()) == []
