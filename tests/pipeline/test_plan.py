"""The plan against tensors that are really there, and against the most that was alive at once."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from crosscoders.activation_fns import ActivationFn, BatchTopK, JumpReLU, ReLU, TopK
from crosscoders.buffer import ActivationBuffer
from crosscoders.cli import main
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.evaluation import ReconstructionScorer
from crosscoders.harvest import load_sources
from crosscoders.interventions import splice_scores
from crosscoders.pipeline.config import DataConfig, ModelConfig, RunConfig
from crosscoders.pipeline.planning.plan import buffer_bytes, plan
from crosscoders.pipeline.planning.result import Plan
from crosscoders.pipeline.planning.training_bytes import objective_of, training_bytes
from crosscoders.pipeline.planning.workspace import measuring_bytes, splicing_bytes, step_bytes
from crosscoders.pipeline.sizes import parse_bytes, shown_bytes
from crosscoders.training import Trainer, TrainerConfig
from tests.data.toy_models import random_tokens, toy_model
from tests.models.derived_configs import derived_config
from tests.pipeline.tensor_peak import TensorPeak

PAIRS = {
    "1.5b": ("Qwen2.5-Math-1.5B", "DeepSeek-R1-Distill-Qwen-1.5B"),
    "7b": ("Qwen2.5-Math-7B", "DeepSeek-R1-Distill-Qwen-7B"),
    "14b": ("Qwen2.5-14B", "DeepSeek-R1-Distill-Qwen-14B"),
}


def run_config(**changes: object) -> RunConfig:
    data = DataConfig(batch_tokens=64, sequence_length=32, sequences_per_harvest=4, buffer_bytes=1 << 20)
    config = RunConfig(
        base="a", distilled="b", text="t", out="o", n_latents=128, activation_fn=BatchTopK(k=4), data=data,
        training=TrainerConfig(total_tokens=10_000_000),
    )  # fmt: skip
    return dataclasses.replace(config, **changes)


def storage_bytes(tensors: list[torch.Tensor]) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def trained(config: RunConfig, *, widths: tuple[int, ...] = (16, 24), n_steps: int = 3) -> Trainer:
    sources = load_sources({f"m{i}": toy_model(d_model=w) for i, w in enumerate(widths)}).sources
    crosscoder = Crosscoder(
        CrosscoderConfig(sources=sources, n_latents=config.n_latents, activation_fn=config.activation_fn)
    )
    trainer = Trainer(crosscoder, objective_of(config), config=config.training)
    shape = (config.data.batch_tokens, sum(widths))
    trainer.total_tokens = 10_000_000
    crosscoder.train()
    for _ in range(n_steps):
        batch = torch.randn(shape)
        trainer._ring.add(batch)
        trainer.training_step(batch)
    return trainer


def kernel_tensors(trainer: Trainer) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What the kernels keep: gradient memory, and norms, copies and written-out latents."""
    if trainer._path._fused is None:
        return [], []
    kernels = trainer._path._fused.kernels
    derived = [t for m in (kernels.weights.W_dec, kernels.weights.W_enc) for t in (m.norms, m.shadow)]
    derived += [getattr(kernels, name, None) for name in ("_written", "_places")]
    memory = list(getattr(kernels, "_gradient_memory", {}).values())
    return memory, [t for t in derived if t is not None]


CASES: list[tuple[ActivationFn, dict]] = [
    (BatchTopK(k=4), {}),
    (BatchTopK(k=4), {"precision": "bfloat16", "calibration_batches": 2}),
    (TopK(k=4), {"backend": "dense"}),
    (BatchTopK(k=4, k_initial=20, anneal_fraction=0.5), {"backend": "dense"}),
    (TopK(k=4), {"backend": "dense", "precision": "bfloat16"}),
    (TopK(k=4), {"max_grad_norm": None}),
    (BatchTopK(k=4), {"backend": "reference", "calibration_batches": 2}),
    (ReLU(), {}),
    (JumpReLU(), {}),
]


@pytest.mark.parametrize(("activation_fn", "training"), CASES)
def test_training_bytes_are_those_of_the_tensors_held(activation_fn: ActivationFn, training: dict) -> None:
    settings = TrainerConfig(total_tokens=10_000_000, **{"calibration_batches": 3, **training})
    config = run_config(activation_fn=activation_fn, training=settings)
    trainer = trained(config)
    found = training_bytes(config, widths=(16, 24))
    crosscoder, (memory, derived) = trainer.crosscoder, kernel_tensors(trainer)
    parameters = list(crosscoder.parameters())
    gradients = [p.grad for p in parameters if p.grad is not None]
    moments = [t for state in trainer.optimizer.state.values() for t in state.values()]
    assert found.parameters == storage_bytes(parameters)
    assert found.optimizer == storage_bytes(moments)
    assert found.calibration_batches == storage_bytes(trainer._ring.batches)
    is_clipped = settings.max_grad_norm is not None or found.path == "autograd"
    if is_clipped or memory:  # the memory is made when first needed, by AuxK at the latest
        assert found.gradients == storage_bytes(gradients + memory)
    assert found.step_state == storage_bytes(derived)
    counters = [crosscoder._scale_row(), trainer.tokens_since_fired, *crosscoder.buffers()]
    assert found.buffers == storage_bytes(counters)


def test_buffer_bytes_are_those_of_window_permutation_and_carried_rows() -> None:
    sources = load_sources({"a": toy_model(), "b": toy_model(d_model=24, seed=1)})
    data = DataConfig(batch_tokens=48, sequence_length=16, sequences_per_harvest=8, buffer_bytes=40_000)
    batches = list(random_tokens(80, 16).split(8))
    buffer = ActivationBuffer(
        sources, batches, max_bytes=40_000, batch_tokens=48, generator=torch.Generator().manual_seed(0)
    )
    next(buffer)
    assert buffer.held_bytes == buffer_bytes(data, width=40) <= 40_000
    with pytest.raises(ValueError, match=r"buffer_bytes=1000 is too small; .* need \d+ bytes"):
        buffer_bytes(dataclasses.replace(data, buffer_bytes=1000), width=40)


def saved_pair(folder: Path) -> dict[str, str]:
    toy_model(n_layers=4).save_pretrained(folder / "a")
    toy_model(n_layers=6, d_model=32, seed=1).save_pretrained(folder / "b")
    return {"base": str(folder / "a"), "distilled": str(folder / "b")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_model_bytes_are_those_of_the_models_loaded(tmp_path: Path, dtype: str) -> None:
    paths = saved_pair(tmp_path)
    config = run_config(**{name: ModelConfig(path=path, dtype=dtype) for name, path in paths.items()})
    found = plan(config, vram_bytes=10**9)
    for truncate in (False, True):
        sources = load_sources(paths, dtype=config.models()["base"].torch_dtype, truncate=truncate)
        for name, model in sources.models.items():
            held = sum(p.numel() * p.element_size() for p in model.causal_lm.parameters())
            assert getattr(found.models[name], "truncated" if truncate else "whole") == held
            weights = {id(t): t.nbytes for t in (*model.causal_lm.parameters(), *model.causal_lm.buffers())}
            assert sum(weights.values()) - held <= 64  # rotary frequencies


def test_placements_add_up_by_device(tmp_path: Path) -> None:
    paths = saved_pair(tmp_path)
    config = run_config(
        base=ModelConfig(path=paths["base"], device="cuda:0"),
        distilled=ModelConfig(path=paths["distilled"], device="cuda:1"),
        device="cuda:0",
        training=TrainerConfig(backend="dense"),
    )
    found = plan(config, vram_bytes=10**9, reserve_bytes=0)
    whole, cut, alternating = found.placements
    base, distilled = found.models.values()
    assert set(whole.needs) == {"cpu", "cuda:0", "cuda:1"}
    assert whole.needs["cuda:1"] - distilled.whole == max(
        found.workspace.reading["distilled"], found.workspace.splicing["distilled"]
    )
    assert cut.needs["cuda:1"] == distilled.truncated + found.workspace.reading["distilled"]
    assert cut.needs["cpu"] == found.buffer_bytes
    assert alternating.needs["cpu"] == found.buffer_bytes + base.truncated + distilled.truncated
    assert alternating.needs["cuda:1"] == cut.needs["cuda:1"]
    assert whole.needs["cuda:0"] >= found.training.total + base.whole
    assert found.best == whole


def test_the_verdict_names_the_most_capable_placement_that_fits(tmp_path: Path) -> None:
    config = run_config(**saved_pair(tmp_path), device="cuda", training=TrainerConfig(backend="dense"))
    needs = {p.name: p.needs["cuda:0"] + 2_000_000_000 for p in plan(config, vram_bytes=1).placements}
    assert list(needs) == ["both whole, spliced", "both truncated", "one after the other"]
    for name, need in needs.items():
        found = plan(config, vram_bytes=need)
        chosen = next(p for p in found.placements if p.name == name)
        assert (chosen.fits, chosen.headroom) == (True, 0)
        assert f"Take: {found.best.name}" in found.summary()
        assert not next(p for p in plan(config, vram_bytes=need - 1).placements if p.name == name).fits
    assert plan(config, vram_bytes=1).summary().endswith("Nothing fits.")


def test_reading_needs_what_the_plan_says(tmp_path: Path) -> None:
    toy_class = type(toy_model())
    for dtype in (torch.float32, torch.bfloat16):
        shape = toy_model(d_model=64).config
        shape.intermediate_size = 640  # so that the feed-forward block is the widest place
        models = {n: toy_class(shape).to(dtype).eval() for n in "ab"}
        sources = load_sources(models)
        tokens = random_tokens(16, 32)
        with TensorPeak() as measured:
            sources.harvest(tokens)
        config = run_config(
            base=ModelConfig(path="a", dtype=str(dtype).removeprefix("torch.")),
            distilled=ModelConfig(path="b", dtype=str(dtype).removeprefix("torch.")),
            data=DataConfig(sequence_length=32, sequences_per_harvest=16, batch_tokens=64),
        )
        configs = {"base": models["a"].config, "distilled": models["b"].config}
        workspace = plan(config, vram_bytes=1, model_configs=configs).workspace
        expected = max(*workspace.reading.values(), workspace.assembling)
        assert measured.peak == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("dead_fraction", [0.0, 1.0])
@pytest.mark.parametrize(
    ("path", "activation_fn", "settings"),
    [
        ("autograd", ReLU(), {}),
        ("autograd", BatchTopK(k=8), {"backend": "reference"}),
        ("dense", BatchTopK(k=8), {"backend": "dense"}),
        ("dense", BatchTopK(k=8), {"backend": "dense", "precision": "bfloat16"}),
    ],
)
def test_a_step_needs_what_the_plan_says(
    path: str, activation_fn: ActivationFn, settings: dict, dead_fraction: float
) -> None:
    config = run_config(
        n_latents=1024,
        activation_fn=activation_fn,
        data=DataConfig(batch_tokens=256),
        training=TrainerConfig(total_tokens=10_000_000, dead_after_tokens=10**6, **settings),
    )
    trainer = trained(config, widths=(64, 64))
    trainer.tokens_since_fired.fill_(int(dead_fraction * 2 * 10**6))
    expected = step_bytes(config, path=path, width=128, dead_fraction=dead_fraction)
    with TensorPeak() as measured:
        trainer.training_step(torch.randn(256, 128).clone())
    again = training_bytes(config, widths=(64, 64)).gradients  # freed before the step and made anew in it
    assert measured.peak - again == pytest.approx(expected, rel=0.15)


def test_measuring_and_splicing_need_what_the_plan_says() -> None:
    config = run_config(
        n_latents=1024, activation_fn=ReLU(), data=DataConfig(sequence_length=32, sequences_per_harvest=16)
    )
    models = {name: toy_model(seed=seed) for seed, name in enumerate("ab")}
    sources = load_sources(models)
    crosscoder = Crosscoder(
        CrosscoderConfig(sources=sources.sources, n_latents=1024, activation_fn=ReLU())
    ).eval()
    tokens = random_tokens(16, 32)
    rows = sources.harvest(tokens).flatten(0, 1)
    with TensorPeak() as measured:
        kept = [rows.clone(), rows.clone()]
        ReconstructionScorer(crosscoder).update(kept[0])
    assert len(kept) == 2
    assert measured.peak == pytest.approx(measuring_bytes(config, width=32), rel=0.15)
    big = toy_model().config
    big.vocab_size = 4000
    model = type(models["a"])(big).eval()
    spliced = load_sources({"a": model, "b": model})
    small = Crosscoder(CrosscoderConfig(sources=spliced.sources, n_latents=8, activation_fn=ReLU())).eval()
    with TensorPeak() as measured:
        splice_scores(small, spliced, tokens, mask=torch.ones_like(tokens, dtype=torch.bool))
    assert measured.peak == pytest.approx(splicing_bytes(config, big), rel=0.15)


def pair_configs(data_file, folder: Path, size: str) -> list[str]:
    def read(name: str) -> dict:
        return json.loads(data_file(f"configs/{name}.json").read_text())

    paths = []
    for name in PAIRS[size]:
        content = read(name) if name == "Qwen2.5-14B" else derived_config(name, read)
        (folder / f"{name}.json").write_text(json.dumps(content))
        paths.append(str(folder / f"{name}.json"))
    return paths


@pytest.mark.parametrize(
    ("size", "billions", "width"),
    [("1.5b", (1.54, 1.78), 3072), ("7b", (7.62, 7.62), 7168), ("14b", (14.77, 14.77), 10240)],
)
def test_the_papers_pairs_are_planned_from_their_configs(
    data_file, tmp_path: Path, size: str, billions: tuple[float, float], width: int
) -> None:
    paths = pair_configs(data_file, tmp_path, size)
    names = dict(zip(("base", "distilled"), paths, strict=True))
    config = RunConfig.from_dict(
        {
            **{name: {"path": path, "dtype": "bfloat16"} for name, path in names.items()},
            "preset": "field", "text": "t", "out": "o", "device": "cuda",
            "data": {"buffer_bytes": 8_000_000_000, "sequences_per_harvest": 8, "splice_tokens": 0},
        }
    )  # fmt: skip
    found = plan(config, vram_bytes=parse_bytes("80GB"))
    for model, expected in zip(found.models.values(), billions, strict=True):
        assert model.whole / 2e9 == pytest.approx(expected, abs=0.01)
        assert 0.49 < model.truncated / model.whole < 0.58
    parameters = 2 * 32_768 * width + 32_768 + width
    assert (found.training.path, found.training.parameters) == ("triton", 4 * parameters)
    assert found.training.optimizer == 2 * 4 * parameters + 16
    fits = {p.name: p.fits for p in found.placements}
    assert fits == {"both truncated": True, "one after the other": True, "both whole": size != "14b"}
    assert found.summary().endswith("Take: both truncated (data.splice_tokens = 0).")


def test_the_command_prints_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = saved_pair(tmp_path)
    arguments = ["plan", "--pair", paths["base"], str(Path(paths["distilled"]) / "config.json")]
    arguments += ["--n-latents", "256", "--vram", "20GB", "--device", "cpu"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "both truncated" in printed
    assert "Take: both truncated" in printed
    assert "256 latents" in printed
    file = tmp_path / "run.toml"
    file.write_text(
        f'base = "{paths["base"]}"\ndistilled = "{paths["distilled"]}"\ntext = "t.txt"\nout = "o"\n'
        "n_latents = 128\n[data]\nsplice_tokens = 0\n"
    )
    assert main(["plan", str(file), "--vram", "2GiB"]) == 0
    assert "of 2.15 GB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vram", "80"], "number with a unit"),
        (["--vram", "80GB"], "give a config, --pair, or --base and --distilled"),
        (["--vram", "80GB", "--pair", "nowhere", "nowhere"], "nowhere"),
        (["--vram", "80GB", "--pair", "/nowhere/config.json", "b"], "/nowhere/config.json: no such file"),
        (["--vram", "9" * 400 + "GB"], "size must be"),
    ],
)
def test_a_plan_that_cannot_be_made_says_why(arguments, message, capsys) -> None:
    assert main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_sizes_are_read_and_shown() -> None:
    assert [parse_bytes(t) for t in ("80GB", "80 GiB", "1.5kB", "7 b")] == [80 * 10**9, 80 << 30, 1500, 7]
    assert [shown_bytes(n) for n in (999, 1_500, -7_260_000_000)] == ["999 B", "1.50 kB", "-7.26 GB"]
    for text in ("80", "GB", "-1GB", "0GB", "80 PB", "80GBs", "1e3 B"):
        with pytest.raises(ValueError, match="size must be"):
            parse_bytes(text)


def test_the_plan_is_plain_data(tmp_path: Path) -> None:
    found = plan(run_config(**saved_pair(tmp_path)), vram_bytes=10**9)
    assert isinstance(found, Plan)
    assert json.loads(json.dumps(found.to_dict()))["training"]["parameters"] == found.training.parameters


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("base = 3", "run.toml: run config: base must be"),
        ("[[base]]\npath = 'x'", "run.toml: run config: base must be"),
        ("base = 'x'\ndata = 3", "run.toml: [data] must be a table, got 3"),
        ("base = ", "run.toml: "),
    ],
)
def test_a_malformed_configuration_is_named(line: str, message: str, tmp_path: Path, capsys) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f"distilled = 'b'\ntext = 't'\nout = 'o'\nn_latents = 8\n{line}\n")
    for arguments in (["plan", str(file), "--vram", "1GB"], ["run", str(file)]):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_hooks_off_the_residual_stream_are_not_planned(tmp_path: Path) -> None:
    for hook_name in ("nonsense", "blocks.1.mlp.hook_post"):
        with pytest.raises(ValueError, match=f"plan: hook_name '{hook_name}' is none of the residual stream"):
            plan(run_config(**saved_pair(tmp_path), hook_name=hook_name), vram_bytes=10**9)


def test_cuda_and_its_first_device_are_one(tmp_path: Path) -> None:
    paths = saved_pair(tmp_path)
    config = run_config(
        base=ModelConfig(path=paths["base"], device="cuda:0"), distilled=paths["distilled"], device="cuda",
        training=TrainerConfig(backend="dense"),
    )  # fmt: skip
    found = plan(config, vram_bytes=10**9)
    plain = plan(dataclasses.replace(config, base=paths["base"]), vram_bytes=10**9)
    assert [p.needs for p in found.placements] == [p.needs for p in plain.placements]
    assert set(plain.placements[0].needs) == {"cpu", "cuda:0"}
