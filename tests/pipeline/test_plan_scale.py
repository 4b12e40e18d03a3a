"""Disk, ranks and hours of a plan: against files that were written, tensors held and operations counted."""

import dataclasses
import itertools
import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config

from crosscoders.activation_fns import BatchTopK, ReLU, TopK
from crosscoders.cli import main
from crosscoders.harvest import load_sources
from crosscoders.pipeline.config import DataConfig, ModelConfig, RunConfig
from crosscoders.pipeline.planning.data import existing_folder
from crosscoders.pipeline.planning.plan import buffer_bytes, plan
from crosscoders.pipeline.planning.ranks import RankLayout, rank_config
from crosscoders.pipeline.planning.speed import SPEEDS, Speed
from crosscoders.pipeline.planning.time import exchanged_bytes, harvest_operations, step_work
from crosscoders.pipeline.planning.training_bytes import training_bytes
from crosscoders.pipeline.system_config import SystemConfig
from crosscoders.store import ActivationStore
from crosscoders.training import TrainerConfig
from tests.data.toy_models import random_tokens, toy_model
from tests.pipeline.test_plan import run_config, trained

SHAPE = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 40, "intermediate_size": 64}
CONFIGS = {
    "base": Qwen2Config(hidden_size=16, num_hidden_layers=4, **SHAPE),
    "distilled": Qwen2Config(hidden_size=32, num_hidden_layers=6, **SHAPE),
}
PAIR = {"base": 16, "distilled": 24}
UNIT = Speed(name="unit", bfloat16=1e9, float32=1e8, bandwidth=1e9, memory=10**9, source="made up")
GPU = {"device": "cuda", "training": TrainerConfig(backend="dense")}


def planned(config: RunConfig, **options):
    return plan(config, **{"vram_bytes": 10**9, "model_configs": CONFIGS, **options})


def sized(config: RunConfig, **data: object) -> RunConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


def with_system(config: RunConfig, **values: object) -> RunConfig:
    return dataclasses.replace(config, system=SystemConfig(**values))


@pytest.mark.parametrize("rows_dtype", ["bfloat16", "float32"])
def test_a_store_takes_the_bytes_that_the_plan_says(tmp_path: Path, rows_dtype: str) -> None:
    models = {"base": toy_model(), "distilled": toy_model(d_model=24, seed=1)}
    sources, tokens = load_sources(models), random_tokens(64, 32)
    config = with_system(
        sized(run_config(), n_tokens=tokens.numel()), store=str(tmp_path / "rows"), rows_dtype=rows_dtype
    )
    configs = {name: model.config for name, model in models.items()}
    before = planned(config, model_configs=configs).data
    batches = tokens.split(config.data.sequences_per_harvest)
    store = ActivationStore.create(tmp_path / "rows", sources, batches, dtype=config.system.torch_dtype)
    store.fill(sources, batches)
    assert before.whole_store == before.needs()[str(tmp_path / "rows")]
    assert store.n_bytes == pytest.approx(before.whole_store, rel=0.01)  # headers come on top
    after = planned(config, model_configs=configs).data
    assert (after.stored, after.needs()[str(tmp_path / "rows")]) == (store.n_bytes, 0)


def test_checkpoint_and_crosscoder_take_the_bytes_that_the_plan_says(tmp_path: Path) -> None:
    config = run_config(training=TrainerConfig(calibration_batches=3))
    trainer = trained(config)
    torch.save(trainer.state_dict(), tmp_path / "state.pt")
    configs = {name: Qwen2Config(hidden_size=w, num_hidden_layers=4, **SHAPE) for name, w in PAIR.items()}
    found = planned(config, model_configs=configs).data
    assert (tmp_path / "state.pt").stat().st_size == pytest.approx(found.checkpoint, rel=0.02, abs=20_000)
    trainer.crosscoder.save_pretrained(tmp_path / "cc")
    saved = (tmp_path / "cc" / "model.safetensors").stat().st_size
    assert saved == pytest.approx(found.crosscoder, rel=0.05)
    often = dataclasses.replace(config, training=TrainerConfig(checkpoint_every_steps=2))
    kept = planned(often, model_configs=configs).data
    assert kept.run_folder == 3 * kept.checkpoint + kept.crosscoder


def test_milestones_lie_on_disk_beside_the_newest_checkpoints() -> None:
    training = TrainerConfig(checkpoint_every_steps=10, milestone_every_steps=50, checkpoints_kept=3)
    config = sized(run_config(training=training), n_tokens=64 * 220, epochs=1)
    assert planned(config).data.n_checkpoints == 3 + 1 + 4
    assert planned(run_config()).data.n_checkpoints == 0


def test_four_hundred_million_tokens_take_what_the_field_reports() -> None:
    wide = Qwen2Config(hidden_size=1536, num_hidden_layers=4, **SHAPE)
    found = planned(sized(run_config(), n_tokens=400_000_000, buffer_bytes=1 << 24), model_configs={
        "base": wide, "distilled": wide,
    })  # fmt: skip
    per_model = (found.data.whole_store - 8 * 400_000_000) / 2
    assert per_model == pytest.approx(1.2e12, rel=0.03)  # 1.2 TB for a 1536-wide model
    assert found.data.token_ids == 8 * (400_000_000 + 200_000)
    assert re.search(r"a store of the whole run, at most +2\.46 TB  not asked for", found.summary())


def test_free_space_is_that_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    assert existing_folder(tmp_path / "a" / "b") == tmp_path
    config = with_system(sized(run_config(out=str(tmp_path)), n_tokens=10**15), store=str(tmp_path / "rows"))
    summary = planned(config).summary()
    assert f"{tmp_path / 'rows'}: needs " in summary
    assert "MISSING" in summary
    assert "as many as the text holds" in planned(run_config()).summary()


@pytest.mark.parametrize("length", [8, 64])
def test_reading_takes_the_operations_that_the_plan_counts(length: int) -> None:
    shape = Qwen2Config(hidden_size=64, num_hidden_layers=4, max_position_embeddings=64, **SHAPE)
    shape._attn_implementation = "eager"  # its products are counted, those of a fused kernel may not be
    decoder = type(toy_model())(shape).eval().model
    decoder.layers = decoder.layers[:2]
    parameters = sum(p.numel() for p in decoder.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder(random_tokens(3, length), use_cache=False)
    found = harvest_operations(shape, parameters=parameters, up_to="half", length=length)
    assert counter.get_total_flops() / (3 * length) == pytest.approx(found, rel=0.02)


def test_a_dense_step_takes_the_operations_that_the_plan_counts() -> None:
    config = run_config(activation_fn=ReLU(), n_latents=256, data=DataConfig(batch_tokens=128))
    trainer = trained(config, widths=(64, 64), n_steps=1)
    # Encoding takes oneDNN's own operator, which the counter does not know.
    linear = {torch.ops.mkldnn._linear_pointwise: lambda x, w, *_, **__: 2 * x[0] * x[1] * w[0]}
    with FlopCounterMode(display=False, custom_mapping=linear) as counter:
        trainer.training_step(torch.randn(128, 128))
    operations, _ = step_work(config, path="autograd", width=128)
    assert counter.get_total_flops() == pytest.approx(operations, rel=0.02)


def test_a_sparse_step_takes_the_work_of_the_cost_model() -> None:
    # 4096 tokens, 32,768 latents, two models of width 1536, k = 100, in bfloat16: encoding takes 0.825 TFLOP,
    # each of three gathers 2.517 GB, Adam 28 bytes for each of 201.3 M parameters.
    config = run_config(
        n_latents=32_768,
        activation_fn=TopK(k=100),
        data=DataConfig(batch_tokens=4096),
        training=TrainerConfig(precision="bfloat16", max_grad_norm=None),
    )
    operations, traffic = step_work(config, path="triton", width=3072)
    assert operations == pytest.approx(0.825e12, rel=1e-3)
    assert traffic == pytest.approx(3 * 2.517e9 + 28 * 201.3e6 + 6 * 0.268e9, rel=1e-3)
    clipped = dataclasses.replace(config, training=TrainerConfig(precision="bfloat16"))
    assert step_work(clipped, path="triton", width=3072)[1] - traffic == 2 * 32_768 * 3072 * 12


@pytest.mark.parametrize(
    ("precision", "gflops", "measured", "said"), [("float32", 188, 194, 343), ("bfloat16", 900, 121, 90)]
)
def test_an_estimated_step_is_within_a_factor_of_two_of_the_one_that_was_measured(
    precision: str, gflops: float, measured: float, said: float
) -> None:
    # docs/performance.md: two threads, d = 256, 16,384 latents, 2048 tokens, k = 32; 65.3 GB/s.
    config = run_config(
        n_latents=16_384,
        activation_fn=BatchTopK(k=32),
        data=DataConfig(batch_tokens=2048),
        training=TrainerConfig(precision=precision),
    )
    operations, traffic = step_work(config, path="cpu", width=512)
    estimate = 1e3 * (operations / (0.6 * gflops * 1e9) + traffic / (0.75 * 65.3e9))
    assert estimate == pytest.approx(said, abs=0.5)
    assert measured / 2 < estimate < 2 * measured


def test_hours_follow_from_work_and_speed() -> None:
    config = sized(run_config(), n_tokens=64_000, held_out_tokens=1000, epochs=2)
    time = planned(config, speed=UNIT).time
    assert (time.harvested_tokens, time.trained_tokens) == (129_000, 128_000)
    assert time.harvest == pytest.approx(129_000 * time.harvest_operations / (0.4 * 1e8))
    step = time.step_operations / (0.6 * 1e8) + time.step_traffic / (0.75 * 1e9)
    assert time.training == pytest.approx(2000 * step)
    assert time.total == time.harvest + time.training
    assert planned(run_config(), speed=UNIT).time is None  # as long as the text
    assert planned(config).time is None


def test_what_is_measured_replaces_what_is_assumed() -> None:
    config = sized(run_config(), n_tokens=64_000)
    measured = dataclasses.replace(UNIT, harvest_rate=1000.0, training_rate=500.0)
    time = planned(config, speed=measured).time
    assert (time.harvest, time.training) == (264.0, 128.0)
    assert "(given)" in " ".join(time.assumptions)
    assert "assumed" not in " ".join(time.assumptions)
    with pytest.raises(ValueError, match="harvest_rate must be positive, got 0"):
        dataclasses.replace(UNIT, harvest_rate=0.0)


def test_a_store_is_harvested_once_however_many_epochs_follow() -> None:
    config = sized(run_config(), n_tokens=64_000, epochs=3)
    live, stored = (planned(c, speed=UNIT).time for c in (config, with_system(config, store="rows")))
    assert live.harvested_tokens - stored.harvested_tokens == 2 * 64_000
    assert live.training == stored.training


def test_offloaded_weights_pay_their_way_to_the_device_once_for_each_group() -> None:
    config = sized(run_config(), n_tokens=64_000)
    models = {n: ModelConfig(path=n, offload=True) for n in CONFIGS}
    there, moved = (planned(c, speed=UNIT) for c in (config, dataclasses.replace(config, **models)))
    held = sum(model.truncated for model in there.models.values())
    groups = there.time.harvested_tokens / (4 * 32)
    assert moved.time.harvest - there.time.harvest == pytest.approx(groups * held / UNIT.transfer)


def test_background_harvest_saves_time_only_on_a_device_of_its_own() -> None:
    config = sized(run_config(**GPU), n_tokens=64_000)
    shared = planned(with_system(config, overlap="process"), speed=UNIT).time
    apart = {n: ModelConfig(path=n, device="cuda:1") for n in CONFIGS}
    own = planned(with_system(dataclasses.replace(config, **apart), overlap="process"), speed=UNIT).time
    assert (shared.is_overlapped, own.is_overlapped) == (False, True)
    assert own.total == max(own.harvest, own.training) < shared.total
    for harvest, training in ((1.0, 2.0), (2.0, 1.0)):
        assert dataclasses.replace(own, harvest=harvest, training=training).total == 2.0, (harvest, training)
    named = dataclasses.replace(
        config, device="cuda:0", **{n: ModelConfig(path=n, device="cuda") for n in CONFIGS}
    )
    assert not planned(with_system(named, overlap="thread"), speed=UNIT).time.is_overlapped  # one device


def test_background_harvest_needs_its_memory_beside_a_step() -> None:
    config = sized(run_config(**GPU), splice_tokens=0)
    turns = planned(config)
    both = planned(with_system(config, overlap="thread", prefetch_batches=3))
    extra = both.placements[0].needs["cuda:0"] - turns.placements[0].needs["cuda:0"]
    workspace = turns.workspace
    reading = max(workspace.assembling, *workspace.reading.values())
    apart = max(reading, workspace.training, workspace.measuring)
    assert extra == max(reading + workspace.training, workspace.measuring) - apart
    assert both.data.in_flight == 3 * 64 * 48 * 2
    assert both.placements[0].needs["cpu"] - turns.placements[0].needs["cpu"] == both.data.in_flight
    window = planned(with_system(config, overlap="thread")).data.in_flight  # one window, if none is named
    carried = config.data.sequences_per_harvest * config.data.sequence_length * 48 * 2
    assert window + carried + window // 96 * 8 == turns.buffer_bytes
    assert turns.placements[0].headroom - both.placements[0].headroom == extra


def test_a_process_that_harvests_holds_models_of_its_own() -> None:
    config = sized(run_config(**GPU), splice_tokens=0)
    thread, process = (
        planned(with_system(config, overlap=how), n_devices=2, vram_bytes=10**10)
        for how in ("thread", "process")
    )
    held = sum(model.truncated for model in thread.models.values())
    for one, two, at in zip(thread.placements, process.placements, ("cuda:1", "cuda:0", "cpu", "cuda:0")):
        assert two.needs[at] - one.needs[at] == held, one.name
    shared = [placements[1] for placements in (thread.placements, process.placements)]
    assert shared[0].headroom - shared[1].headroom == held + thread.reserve_bytes  # and a second context
    turns = planned(config, n_devices=2)
    assert turns.placements[0].needs["cuda:1"] == process.placements[0].needs["cuda:1"]  # as its hint asks


def test_more_devices_offer_places_for_the_models() -> None:
    config = sized(run_config(**GPU), splice_tokens=0)
    names = {n: [p.name for p in planned(config, n_devices=n).placements] for n in (1, 2, 3)}
    assert names[2] == ["models on a second device", *names[1]]
    assert names[3] == ["models on a second device", "a device for each model", *names[1]]
    found = planned(config, n_devices=3, vram_bytes=10**10)
    base, distilled = found.models.values()
    reading = found.workspace.reading
    assert found.placements[1].needs["cuda:1"] == 2 * base.truncated + reading["base"]
    assert found.placements[1].needs["cuda:2"] == 2 * distilled.truncated + reading["distilled"]
    assert found.summary().endswith('and system.overlap = "process").')


@pytest.mark.parametrize(("n_ranks", "shards"), [(1, 1), (2, 1), (2, 2), (4, 2), (3, 3)])
def test_ranks_hold_the_crosscoder_between_them(n_ranks: int, shards: int) -> None:
    config = run_config(activation_fn=ReLU(), n_latents=120, data=DataConfig(batch_tokens=60))
    layout = RankLayout(n_ranks=n_ranks, latent_shards=shards)
    whole, part = planned(config), planned(config, ranks=layout)
    biases = 4 * 48 * (shards - 1)  # every rank has the decoder's
    assert part.training.parameters * shards == whole.training.parameters + biases
    assert (part.data.checkpoint, part.data.row) == (whole.data.checkpoint, whole.data.row)
    assert part.buffer_bytes == whole.buffer_bytes
    assert (
        step_work(rank_config(config, layout), path="autograd", width=48)[0] * n_ranks
        == step_work(config, path="autograd", width=48)[0]
    )
    measuring = part.workspace.measuring - whole.workspace.measuring
    assert measuring == (whole.training.parameters if n_ranks > 1 else 0)


def test_the_fullest_rank_is_planned() -> None:
    config = run_config(n_latents=130, activation_fn=BatchTopK(k=60, k_initial=120, anneal_fraction=0.5))
    part = rank_config(config, RankLayout(n_ranks=6, latent_shards=3))
    assert (part.n_latents, part.data.batch_tokens) == (44, 32)
    assert (part.activation_fn.k, part.activation_fn.k_initial) == (44, 44)
    assert training_bytes(part, widths=(16, 32)).path == "autograd"
    assert rank_config(config, RankLayout()) is config


def test_ranks_share_the_work_and_say_what_they_send() -> None:
    config = sized(run_config(activation_fn=ReLU(), n_latents=120), n_tokens=64_000, batch_tokens=64)
    layout = RankLayout(n_ranks=4, latent_shards=2)
    alone, four = (planned(config, speed=UNIT, ranks=ranks).time for ranks in (None, layout))
    assert four.harvest == pytest.approx(alone.harvest / 4)
    assert alone.training / 4 < four.training < alone.training  # Adam is split over the shards alone
    # Half the gradients of a shard go round twice, and half of the rows' partial sums.
    sent = (2 * 60 * 48 + 60 + 48) * 4 + 32 * 48 * 4
    assert exchanged_bytes(config, layout, width=48) == sent
    assert "4 ranks: tokens over 2, latents over 2." in planned(config, ranks=layout).summary()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_ranks": 4, "latent_shards": 3}, "positive multiple of the latent shards, got 4 ranks and 3"),
        ({"n_ranks": 0}, "got 0 ranks"),
    ],
)
def test_ranks_that_cannot_be_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RankLayout(**options)
    with pytest.raises(ValueError, match="2 devices and 4 ranks"):
        planned(run_config(**GPU), ranks=RankLayout(n_ranks=4), n_devices=2)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (RankLayout(n_ranks=4, latent_shards=4), "5 latents leave some of 4 ranks without any"),
        (RankLayout(n_ranks=1000), "64 tokens of a batch leave some of 1000 ranks without any"),
    ],
)
def test_ranks_without_work_are_refused(layout: RankLayout, message: str) -> None:
    config = sized(run_config(n_latents=5, activation_fn=BatchTopK(k=2)), batch_tokens=64)
    with pytest.raises(ValueError, match=message):
        planned(config, ranks=layout)


def test_the_buffer_keeps_rows_in_the_dtype_that_the_run_asks_for() -> None:
    config = sized(run_config(), buffer_bytes=1 << 18)
    found = planned(with_system(config, rows_dtype="float32"))
    assert found.buffer_bytes == buffer_bytes(config.data, width=48, itemsize=4)
    assert planned(config).buffer_bytes == buffer_bytes(config.data, width=48)


def saved(folder: Path) -> list[str]:
    for name, config in CONFIGS.items():
        config.save_pretrained(folder / name)
    return [str(folder / name) for name in CONFIGS]


def test_the_command_says_hours_ranks_and_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = saved(tmp_path)
    arguments = ["plan", "--pair", *pair, "--gpu", "h100", "--n-latents", "256", "--preset", "paper"]
    assert main([*arguments, "--ranks", "4", "--latent-shards", "2", "--n-tokens", "1000000"]) == 0
    printed = capsys.readouterr().out
    for said in ("4 ranks: tokens over 2, latents over 2.", "of 80.00 GB", "one H100 SXM", "not measured"):
        assert said in printed
    store = str(tmp_path / "rows")
    assert main([*arguments, "--store", store, "--devices", "2", "--training-rate", "5e5"]) == 0
    printed = capsys.readouterr().out
    for said in (f"{store}: needs ", "models on a second device", "500,000 tokens per second (given)"):
        assert said in printed
    rates = ["--vram", "8GB", "--harvest-rate", "100200", "--training-rate", "5e5", "--n-tokens", "1000000"]
    assert main(["plan", "--pair", *pair, "--device", "cpu", "--n-latents", "256", *rates]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"harvest +\d+ s +100,200 tokens/s", printed)
    assert "assumed" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --vram, such as 80GB, or --gpu"),
        (["--vram", "8GB", "--harvest-rate", "5"], "one measured rate needs --gpu"),
        (["--harvest-rate", "5", "--training-rate", "5"], "give --vram"),
        (["--gpu", "h100", "--harvest-rate", "-5"], "harvest_rate must be positive"),
        (["--gpu", "h100", "--ranks", "3", "--latent-shards", "2"], "multiple of the latent shards"),
        (["--gpu", "h100", "--devices", "0"], "n_devices must be at least 1"),
        (["--gpu", "h100", "--device", "cpu"], "--gpu estimates a run on GPUs"),
    ],
)
def test_a_command_that_cannot_be_meant_says_why(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--pair", *saved(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_every_device_of_the_table_is_a_plausible_one() -> None:
    for speed, slower in itertools.pairwise([SPEEDS[name] for name in ("h200", "a100", "rtx4090")]):
        assert speed.bfloat16 > slower.bfloat16
        assert speed.memory > slower.memory
    for speed in SPEEDS.values():
        assert speed.bfloat16 > speed.float32 > 10e12
        assert 1e11 < speed.bandwidth < 1e13
