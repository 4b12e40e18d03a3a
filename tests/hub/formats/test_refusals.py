"""What is not read: files that lack, contradict or hide something, and rules a crosscoder cannot follow."""

import itertools
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from crosscoders.errors import CheckpointError
from crosscoders.hub.convert import convert
from crosscoders.hub.formats import read_foreign
from tests.hub.formats.foreign_cases import (
    CASES,
    SCALE,
    Case,
    ckkissane,
    crosscode,
    dfc_masked,
    dfc_partitioned,
    dictionary_learning,
    jnward,
    saelens,
    sparsify,
)


def assert_refused(case: Case, folder: Path, match: str, **given: Any) -> None:
    """Reading raises, and conversion raises and leaves nothing."""
    theirs, ours = case.write(folder / "theirs"), folder / "ours"
    with pytest.raises(ValueError, match=match):
        read_foreign(theirs, allow_pickle_files=True, **(given or case.given))
    with pytest.raises(ValueError, match=match):
        convert(theirs, ours, **(given or case.given))
    assert [path.name for path in folder.iterdir()] == ["theirs"]


def changed(case: Case, *, config: dict[str, Any] | None = None, **tensors: Any) -> Case:
    """The case with other entries; a tensor given as None is left out."""
    case.tensors.update({key.replace("__", "."): tensor for key, tensor in tensors.items()})
    for key in [key for key, tensor in case.tensors.items() if tensor is None]:
        del case.tensors[key]
    if case.config is not None:
        case.config.update(config or {})
    return case


@pytest.mark.parametrize(
    "case", [ckkissane(), dfc_masked(), crosscode(), jnward()], ids=lambda c: c.format_name
)
def test_a_missing_scale_is_never_guessed(case: Case, tmp_path: Path) -> None:
    k = {"k": case.given["k"]} if "k" in case.given else {}
    assert_refused(case, tmp_path, r"not guessed; give scale=", scale=None, **k)


@pytest.mark.parametrize("name", ["dl, CROSSCODER", "dl, one factor", "crosscode, folded", "sparsify"])
def test_a_scale_that_the_file_carries_is_not_replaced(name: str, tmp_path: Path) -> None:
    assert_refused(CASES[name], tmp_path, r"leave out scale=", scale=(1.0,) * CASES[name].n_sources)


@pytest.mark.parametrize(
    ("scale", "match"),
    [
        ((1.0,), "expected 2 numbers"),
        ({"model_0": 1.0}, "expected one entry for each"),
        ((1.0, -1.0), "finite and positive"),
        ((1.0, float("nan")), "finite and positive"),
        ((1.0, 10**400), "too large"),
    ],
)
def test_a_scale_that_does_not_fit_is_refused(scale: Any, match: str, tmp_path: Path) -> None:
    assert_refused(ckkissane(), tmp_path, match, scale=scale)


def test_sources_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    assert_refused(ckkissane(), tmp_path / "a", "2 sources of widths", scale=SCALE, sources=("only",))
    assert_refused(ckkissane(), tmp_path / "b", "unique", scale=SCALE, sources=("x", "x"))


def test_k_is_never_guessed_and_not_contradicted(tmp_path: Path) -> None:
    scale = jnward().given["scale"]
    assert_refused(jnward(in_file=False), tmp_path / "a", "give k=", scale=scale)
    assert_refused(jnward(), tmp_path / "b", "says k=4", scale=scale, k=7)
    assert_refused(changed(sparsify(), config={"k": 2.5}), tmp_path / "c", "positive integer")
    assert_refused(changed(sparsify(), config={"k": 99}), tmp_path / "d", "no crosscoder that can be built")


def test_a_k_that_nothing_uses_is_refused(tmp_path: Path) -> None:
    assert_refused(ckkissane(), tmp_path / "a", "keeps no fixed number", scale=SCALE, k=3)
    assert_refused(saelens("jumprelu"), tmp_path / "b", "keeps no fixed number", k=3)


@pytest.mark.parametrize("stated", [{"code_normalization": "NONE"}, {"dict_size": 7}, {"activation_dim": 5}])
def test_a_trainers_config_that_contradicts_the_tensors_is_refused(stated: dict, tmp_path: Path) -> None:
    (dictionary_learning("SAE").write(tmp_path) / "trainer_config.json").write_text(
        json.dumps({"trainer": stated})
    )
    with pytest.raises(CheckpointError, match=str(next(iter(stated.values())))):
        read_foreign(tmp_path)


@pytest.mark.parametrize(
    ("shapes", "given"),
    [
        ({"encoder.weight": (2**33, 5, 0), "decoder.weight": (2**33, 0, 5), "encoder.bias": (0,)}, {}),
        ({"_W_enc_XiDiL": (1, 2**33, 5, 0), "_W_dec_LXoDo": (0, 1, 2**33, 5)}, {"scale": [1.0]}),
    ],
    ids=["dictionary_learning", "crosscode"],
)
def test_sizes_that_no_byte_stands_for_ask_for_no_memory(
    shapes: dict[str, tuple[int, ...]], given: dict[str, Any], tmp_path: Path
) -> None:
    """A tensor with an axis of length 0 has no bytes, whatever its other axes claim."""
    header = {
        key: {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 0]} for key, shape in shapes.items()
    }
    raw = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
    (tmp_path / "config.yaml").write_text('{"activation_fn": {"classname": "ReLU"}}')
    with pytest.raises(CheckpointError, match="no numbers"):
        read_foreign(tmp_path, **given)


def test_codes_gated_per_source_or_head_are_refused_with_the_reason(tmp_path: Path) -> None:
    decoupled = changed(dictionary_learning("CROSSCODER"), threshold=torch.tensor([1.0, 2.0]))
    decoupled.tensors["code_normalization_id"] = torch.tensor(5)
    assert_refused(decoupled, tmp_path / "a", "each source has its own gate")
    heads = Case(
        format_name="llamascopium",
        tensors={"W_E": torch.zeros(2, 6, 8), "b_E": torch.zeros(2, 8), "W_D": torch.zeros(2, 8, 6)},
        encode=torch.relu,
        decode=torch.relu,
    )
    assert_refused(heads, tmp_path / "b", "gates its codes per head")


@pytest.mark.parametrize(
    ("case", "match"),
    [
        (
            changed(crosscode(jumprelu=False), config={"activation_fn": {"classname": "TopkActivation"}}),
            "negative",
        ),
        (changed(crosscode(jumprelu=False), config={"activation_fn": None}), "activation_fn.classname"),
        (saelens("gated"), "one pre-activation and takes its value from another"),
        (saelens("transcoder"), "'transcoder' cannot be represented"),
        (saelens("standard", activation_fn_str="tanh-relu"), "activation 'tanh-relu'"),
        (saelens("standard", normalize_activations="layer_norm"), "each token by its own norm"),
        (saelens("standard", normalize_activations="covariance_whitening"), "matrix that the file does not"),
        (saelens("standard", normalize_activations="other"), "'other' is unknown"),
        (changed(saelens("standard"), scaling_factor=torch.full((24,), 3.0)), "finetuning_scaling_factor"),
        (saelens("batchtopk"), "should state rescale_acts_by_decoder_norm"),
        (changed(sparsify(), config={"transcode": True}), "writes another place"),
        (changed(sparsify(), W_skip=torch.zeros(6, 6)), "passes no latent"),
        (changed(sparsify(), config={"activation": "groupmax"}), "groupmax"),
        (changed(ckkissane(), config={"sparsity_type": "gated"}), "sparsity_type 'gated'"),
        (changed(dictionary_learning("SAE"), config={"encoder_layers": [0]}), "reads and writes the same"),
        (
            changed(dictionary_learning("SAE"), config={"code_normalization": "NONE"}),
            "says SAE, the configs NONE",
        ),
        (changed(dictionary_learning("MIXED"), config={"code_normalization_alpha_cc": None}), "MIXED needs"),
    ],
    ids=range(17),
)
def test_rules_that_cannot_be_represented_say_why(case: Case, match: str, tmp_path: Path) -> None:
    assert_refused(case, tmp_path, match)


@pytest.mark.parametrize(
    ("case", "match"),
    [
        (changed(ckkissane(), b_enc=torch.zeros(23)), "'b_enc' should be"),
        (changed(ckkissane(), b_enc=None), "'b_enc' is missing"),
        (changed(ckkissane(), extra=torch.zeros(2)), "unknown tensors"),
        (changed(ckkissane(), config={"d_in": 7}), "d_in=7, the tensors say 6"),
        (changed(ckkissane(), b_enc=torch.full((24,), torch.nan)), "NaN or infinity"),
        (changed(ckkissane(), b_enc=torch.zeros(24, dtype=torch.int64)), "floating point"),
        (changed(ckkissane(), W_dec=torch.zeros(2, 6, 24)), "no tensors of a known format"),
        (changed(dictionary_learning("SAE"), code_normalization_id=torch.tensor(9)), "known are"),
        (changed(dictionary_learning("SAE"), threshold=torch.tensor(torch.inf)), "finite"),
        (changed(dictionary_learning("SAE", normalizer="factor"), activation_std=None), "are missing"),
        (changed(dfc_masked(), enc_mask=torch.full((2, 24), 0.5)), "zeros and ones"),
        (changed(dfc_partitioned(), decoder__weight=torch.ones(2, 24, 6)), "exactly 0"),
        (changed(dfc_partitioned(), _partition_config={"dict_size": 24}), "should state"),
    ],
    ids=range(13),
)
def test_files_that_contradict_themselves_are_refused(case: Case, match: str, tmp_path: Path) -> None:
    assert_refused(case, tmp_path, match)


def test_tensors_that_fit_two_formats_name_both(tmp_path: Path) -> None:
    both = changed(saelens("standard"), **sparsify().tensors)
    assert_refused(both, tmp_path, r"more than one format: \['saelens', 'sparsify'\]")


def test_several_crosscoders_in_a_folder_have_to_be_named(tmp_path: Path) -> None:
    case = ckkissane()
    case.write(tmp_path)
    shutil.copy(tmp_path / "4.pt", tmp_path / "5.pt")
    with pytest.raises(ValueError, match=r"4\.pt .*5\.pt .*name one of them"):
        read_foreign(tmp_path, scale=SCALE, allow_pickle_files=True)
    assert read_foreign(tmp_path / "5.pt", scale=SCALE, allow_pickle_files=True).notes == ()


def test_a_file_beside_the_weights_that_is_no_crosscoder_is_passed_over(tmp_path: Path) -> None:
    case = saelens("standard")
    save_file({"sparsity": torch.zeros(24)}, case.write(tmp_path) / "sparsity.safetensors")
    assert read_foreign(tmp_path).format_name == "saelens"


def test_pickles_are_left_to_convert(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="crosscoders convert"):
        read_foreign(ckkissane().write(tmp_path), scale=SCALE)
    with pytest.raises(CheckpointError, match="no such file"):
        read_foreign(tmp_path / "absent")


def test_an_artifact_of_this_library_is_not_foreign(tmp_path: Path) -> None:
    convert(sparsify().write(tmp_path / "theirs"), tmp_path / "ours")
    with pytest.raises(ValueError, match="an artifact of this library already"):
        convert(tmp_path / "ours", tmp_path / "again")


class Canary:
    """Makes a folder when a careless unpickler builds it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("key", ["W_enc", "b_enc", "more"])
def test_a_pickle_that_would_run_code_runs_nothing(key: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    case = ckkissane()
    case.tensors[key] = Canary(canary)
    folder = case.write(tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="restricted unpickler"):
        convert(folder, tmp_path / "ours", scale=SCALE)
    assert not canary.exists()
    assert not (tmp_path / "ours").exists()


def test_a_pickle_in_disguise_is_not_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save({"W_enc": Canary(canary)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not readable as safetensors"):
        convert(tmp_path, tmp_path / "ours")
    assert not canary.exists()


def test_archives_that_would_grow_are_refused(tmp_path: Path) -> None:
    path = ckkissane().write(tmp_path) / "4.pt"
    with (
        zipfile.ZipFile(path) as stored,
        zipfile.ZipFile(tmp_path / "5.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in stored.namelist():
            packed.writestr(entry, stored.read(entry))
    with pytest.raises(CheckpointError, match="compressed entries"):
        read_foreign(tmp_path / "5.pt", scale=SCALE, allow_pickle_files=True)
    path.unlink()
    assert_refused(
        changed(ckkissane(), b_enc=torch.zeros(1).expand(10**9)), tmp_path / "x", "claims 4000000000 bytes"
    )


@pytest.mark.parametrize("name", ["ckkissane", "dl, CROSSCODER"])
@pytest.mark.parametrize("n_bytes", [0, 4, 100, -10])
def test_truncated_files_are_refused(name: str, n_bytes: int, tmp_path: Path) -> None:
    case = CASES[name]
    path = case.write(tmp_path) / case.weights_name
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(CheckpointError):
        convert(tmp_path, tmp_path / "ours", **case.given)
    assert not (tmp_path / "ours").exists()


def test_a_header_that_lies_about_its_length_is_refused(tmp_path: Path) -> None:
    path = dictionary_learning("SAE").write(tmp_path) / "model.safetensors"
    path.write_bytes((1 << 62).to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(CheckpointError, match="not readable as safetensors"):
        read_foreign(tmp_path)


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    secret = dictionary_learning("SAE").write(tmp_path / "elsewhere")
    for name in ("model.safetensors", "config.json"):
        folder = tmp_path / name.split(".")[0]
        shutil.copytree(secret, folder)
        (folder / name).unlink()
        (folder / name).symlink_to(secret / name)
        with pytest.raises(CheckpointError, match="leads out of its folder"):
            read_foreign(folder)


@pytest.mark.parametrize("text", ["{", "[]", "\x00", "[" * 100_000, '{"d_in": "six"}'])
def test_a_config_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (saelens("standard").write(tmp_path) / "cfg.json").write_text(text)
    with pytest.raises(CheckpointError):
        read_foreign(tmp_path)


@pytest.mark.slow
def test_configs_of_any_shape_end_in_an_answer_or_a_documented_error(tmp_path: Path) -> None:
    """Every key that a reader looks at takes values of every type."""
    values = [None, True, -1, 0, 2.5, 1e400, "x", "", [], [1], {}, {"k": 1}, {"classname": 3}, 10**30]
    keys = ("k", "d_in", "architecture", "activation_fn", "activation_fn_kwargs", "metadata", "hookpoints")
    more = (
        "code_normalization",
        "_partition_config",
        "encoder_layers",
        "sparsity_type",
        "n_layers",
        "hook_point",
    )
    flags = ("normalize_activations", "apply_b_dec_to_input", "finetuning_scaling_factor", "transcode")
    names = ("ckkissane", "dl, MIXED", "crosscode, folded", "saelens, topk", "sparsify")
    n_refused = 0
    for name in names:
        folder, case = CASES[name].write(tmp_path / name), CASES[name]
        for key, value in itertools.product((*keys, *more, *flags), values):
            text = json.dumps({**(case.config or {}), key: value})
            (folder / case.config_name).write_text(text)
            try:
                read_foreign(folder, allow_pickle_files=True, **case.given)
            except ValueError:
                n_refused += 1
    assert 100 < n_refused < 1000


def test_yaml_builds_no_objects(tmp_path: Path) -> None:
    folder, canary = crosscode().write(tmp_path / "theirs"), tmp_path / "canary"
    (folder / "model_cfg.yaml").write_text(f"a: !!python/object/apply:os.mkdir ['{canary}']")
    with pytest.raises(CheckpointError, match="not readable as yaml"):
        convert(folder, tmp_path / "ours", scale=(1.0,) * 4)
    assert not canary.exists()


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(FileExistsError):
        convert(sparsify().write(tmp_path / "theirs"), tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
