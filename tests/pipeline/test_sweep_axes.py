"""What may be an axis of a sweep, what each value makes, and how members are named."""

import random
from pathlib import Path
from typing import Any

import pytest

from crosscoders.activation_fns import BatchTopK, JumpReLU, TopK
from crosscoders.cli import main
from crosscoders.losses import AuxK, Reconstruction
from crosscoders.pipeline.config import RunConfig, default_objective
from crosscoders.pipeline.sweep import Sweep
from crosscoders.pipeline.sweep.axes import allowed_axes, member_names
from crosscoders.pipeline.sweep.front import pareto_front
from tests.pipeline.sweep_case import toy_config
from tests.repo.source_tree import ROOT

TOML = """
base = "a"
distilled = "b"
text = "c"
out = "runs/sweep"
activation_fn = {kind = "batch_topk", k = 8}
[training]
lr = 0.001
[sweep]
"""


def sweep_of(tmp_path: Path, text: str, head: str = TOML) -> Sweep:
    (tmp_path / "sweep.toml").write_text(head + text)
    return Sweep.from_toml(tmp_path / "sweep.toml")


def test_a_product_has_every_combination_in_its_own_folder(tmp_path: Path) -> None:
    axes = '"activation_fn.k" = [4, 8]\nn_latents = [64, 128]\ntraining.lr = [1e-3, 5e-4]'
    sweep = sweep_of(tmp_path, axes)
    assert [member.name for member in sweep.members[:3]] == [
        "k=4,n_latents=64,lr=0.001",
        "k=4,n_latents=64,lr=0.0005",
        "k=4,n_latents=128,lr=0.001",
    ]
    last = sweep.members[-1]
    assert len(sweep.members) == 8
    assert last.config.activation_fn == BatchTopK(k=8)
    assert (last.config.n_latents, last.config.training.lr) == (128, 5e-4)
    assert last.folder == Path("runs/sweep/members/k=8,n_latents=128,lr=0.0005")
    assert last.config.objective == tuple(default_objective(BatchTopK(k=8)))


def test_the_example_is_a_sweep() -> None:
    sweep = Sweep.from_toml(ROOT / "examples" / "sweep.toml", out="elsewhere")
    assert len(sweep.members) == 12
    assert {member.config.activation_fn for member in sweep.members} == {
        BatchTopK(k=k) for k in (32, 64, 128)
    }
    assert sweep.members[0].folder.parent == Path("elsewhere/members")


def test_zip_takes_the_values_together(tmp_path: Path) -> None:
    axes = "n_latents = [64, 128]\nseed = [5, 6]\n"
    sweep = sweep_of(tmp_path, f'combine = "zip"\n{axes}')
    assert [(member.config.n_latents, member.config.seed) for member in sweep.members] == [(64, 5), (128, 6)]
    assert sweep.config.seed == 0  # of the text and the order of the rows
    with pytest.raises(ValueError, match=r"needs lists of one length, got \{'n_latents': 2, 'seed': 3\}"):
        sweep_of(tmp_path, 'combine = "zip"\nn_latents = [64, 128]\nseed = [5, 6, 7]')


def test_whole_tables_may_vary_and_bring_their_own_objective(tmp_path: Path) -> None:
    text = 'activation_fn = [{kind = "topk", k = 4}, {kind = "jumprelu"}]\nn_latents = [64]\n'
    for head in (TOML, TOML.replace('activation_fn = {kind = "batch_topk", k = 8}', 'preset = "field"')):
        sweep = sweep_of(tmp_path, text, head)
        assert [m.config.activation_fn for m in sweep.members] == [TopK(k=4), JumpReLU()]
        assert [m.config.objective for m in sweep.members] == [
            tuple(default_objective(fn)) for fn in (TopK(k=4), JumpReLU())
        ]


def test_a_term_of_the_objective_may_vary(tmp_path: Path) -> None:
    head = TOML.replace("[training]", "n_latents = 64\n[training]")
    sweep = sweep_of(tmp_path, '"objective.auxk.weight" = [0.5, 1.0]', head)
    assert [m.config.objective for m in sweep.members] == [
        (Reconstruction(), AuxK(weight=0.5)),
        (Reconstruction(), AuxK(weight=1.0)),
    ]
    with pytest.raises(ValueError, match=r"has no term 'l1'; it has \['auxk', 'reconstruction'\]"):
        sweep_of(tmp_path, '"objective.l1.weight" = [0.5, 1.0]', head)


def test_what_only_an_axis_gives_may_be_left_out_elsewhere(tmp_path: Path) -> None:
    head = TOML.replace('activation_fn = {kind = "batch_topk", k = 8}', "")
    sweep = sweep_of(tmp_path, "activation_fn.k = [4, 6]\nn_latents = [8]", head)
    assert [m.config.activation_fn for m in sweep.members] == [BatchTopK(k=4), BatchTopK(k=6)]


@pytest.mark.parametrize(
    "axis",
    ["data.batch_tokens", "base", "hook_name", "device", "system.store", "training.log_every_steps",
     "data", "text", "out"],
)  # fmt: skip
def test_an_axis_that_cannot_be_is_refused_with_those_that_can(tmp_path: Path, axis: str) -> None:
    config = toy_config(tmp_path)
    with pytest.raises(ValueError, match="cannot be an axis: all members share one harvest") as caught:
        Sweep(config, {axis: [1, 2]})
    assert str(allowed_axes(config)) in str(caught.value)
    assert {"n_latents", "seed", "activation_fn.k", "objective.auxk.weight", "training.lr"} <= set(
        allowed_axes(config)
    )


@pytest.mark.parametrize(
    ("axis", "nearest"),
    [
        ("lr", ""),
        ("training.learning_rate", ""),
        ("training.lrr", ", the nearest is 'training.lr'"),
        ("seed.x", ""),
        ("activation_fn.k.x", ", the nearest is 'activation_fn.k'"),
        ("objective.auxk", ", the nearest is 'objective.auxk.k_aux'"),
    ],
)
def test_an_axis_that_is_no_setting_is_told_from_one_that_is_fixed(
    tmp_path: Path, axis: str, nearest: str
) -> None:
    with pytest.raises(ValueError, match=f"cannot be an axis: there is no such setting{nearest}"):
        Sweep(toy_config(tmp_path), {axis: [1, 2]})


@pytest.mark.parametrize("command", [["run"], ["plan", "--vram", "8GB"]])
def test_the_file_of_a_sweep_is_told_from_that_of_a_run(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, str(ROOT / "examples/sweep.toml")]) == 2
    assert "has a table [sweep], which `crosscoders sweep` reads" in capsys.readouterr().err


def test_every_allowed_axis_is_one(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    for axis in allowed_axes(config):
        plain: Any = config.to_dict()
        for part in axis.split("."):
            plain = (
                next((t for t in default_terms(config) if t["term"] == part), {})
                if isinstance(plain, list)
                else plain[part]
            )
        value = [{"term": "reconstruction"}] if axis == "objective" else plain
        assert len(Sweep(config, {axis: [value]}).members) == 1


def default_terms(config: RunConfig) -> list[dict[str, Any]]:
    return [{"term": term.name, **vars(term)} for term in default_objective(config.activation_fn)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no axis"),
        ("n_latents = 64", "n_latents must be a list of values, got 64"),
        ("n_latents = [64, 64]", r"members member-000 and member-001 are the same"),
        ("n_latents = [64, 4]", r"member n_latents=4: .*8"),
        ('n_latents = [64, "many"]', "member n_latents=many: n_latents must be int, got 'many'"),
        ("n_latents = [64]\ntraining.lr = [-1.0]", "member n_latents=64,lr=-1: TrainerConfig: lr must be"),
        ("n_latents = [64]\nactivation_fn.kk = [1]", "kk"),
        ('n_latents = [64]\n"activation_fn.kind" = ["topk"]', "list whole tables"),
        ('n_latents = [64]\ncombine = "sum"', "combine must be one of"),
        ("n_latents = [64]\ndata.epochs = [1, 2]", "'data.epochs' cannot be an axis"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        sweep_of(tmp_path, text)
    assert "sweep.toml" in str(caught.value)


def test_names_that_are_no_folders_become_numbers() -> None:
    tables = [{"activation_fn": {"kind": "topk", "k": k}} for k in (4, 5)]
    assert member_names(tables) == [
        "activation_fn=topk-k-4",
        "activation_fn=topk-k-5",
    ]
    assert member_names([{"objective": [{"term": "x" * 200}]}]) == ["member-000"]
    assert member_names([{"a.k": 1, "b.k": 2}]) == ["a.k=1,b.k=2"]


def on_front(at: int, costs: list[float], gains: list[float]) -> bool:
    """Whether nothing beats a point, by its definition."""
    own = (costs[at], gains[at])
    if any(value != value for value in own):
        return False
    return not any(c <= own[0] and g >= own[1] and (c, g) != own for c, g in zip(costs, gains))


def test_the_front_is_that_of_its_definition() -> None:
    rng = random.Random(0)
    values = [0.0, 1.0, 2.0, 2.5, 3.0, float("nan")]
    for _ in range(500):
        n = rng.randrange(0, 9)
        costs, gains = ([rng.choice(values) for _ in range(n)] for _ in range(2))
        assert pareto_front(costs, gains) == [on_front(at, costs, gains) for at in range(n)]
    with pytest.raises(ValueError, match="2 costs for 1 gains"):
        pareto_front([1.0, 2.0], [1.0])
