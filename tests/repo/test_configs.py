"""The paper's recipe as configurations, and the page's table of what they take."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from benchmarks import scale_table
from benchmarks.scale_table import MACHINES, PAIRS, SHAPES, model_config, row

from crosscoders.activation_fns import BatchTopK, ReLU
from crosscoders.losses import DecoderNormL1, Reconstruction
from crosscoders.models.configs import find_config
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.planning.plan import plan
from crosscoders.pipeline.planning.speed import Speed
from tests.models.derived_configs import DERIVED, derived_config
from tests.repo.source_tree import ROOT

FOLDER = ROOT / "configs" / "paper"
NAMES = ["r1_distill_qwen_14b", "r1_distill_qwen_1_5b", "r1_distill_qwen_7b"]
# 4096 tokens of both models up to half depth, 2 operations per parameter, at 400 TFLOP/s; attention left out.
HARVEST_MS = {"1.5B": 26.8, "7B": 134, "14B": 268}


def shape_of(data_file, name: str) -> dict:
    """A model's config.json: the real one, or the nearest real one with what differs."""

    def read(real: str) -> dict:
        return json.loads(data_file(f"configs/{real}.json").read_text(encoding="utf-8"))

    return derived_config(name, read) if name in DERIVED else read(name)


def test_there_is_one_configuration_for_each_pair() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*")) == NAMES
    assert {Path(path).stem for path in PAIRS.values()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_both_recipes_are_of_the_same_pair(name: str) -> None:
    paper, field = (RunConfig.from_toml(ROOT / f"configs/{kind}/{name}.toml") for kind in ("paper", "field"))
    for one, other in zip(paper.models().values(), field.models().values(), strict=True):
        assert (one.path, one.dtype) == (other.path, other.dtype)
    assert isinstance(field.activation_fn, BatchTopK)
    assert paper.out != field.out
    for kind in ("paper", "field"):
        text = (ROOT / f"configs/{kind}/{name}.toml").read_text(encoding="utf-8")
        assert f"crosscoders run configs/{kind}/{name}.toml" in text


@pytest.mark.parametrize("name", NAMES)
def test_the_configurations_are_the_papers_recipe(name: str) -> None:
    config = RunConfig.from_toml(FOLDER / f"{name}.toml")
    assert (config.n_latents, config.hook_name, config.data.n_tokens) == (32_768, "half", 400_000_000)
    assert config.activation_fn == ReLU()
    assert config.objective == (Reconstruction(), DecoderNormL1(weight=2.0, warmup_fraction=0.05))
    assert {part.name: part.weight for part in config.text} == {"traces": 0.5, "general": 0.5}
    training = config.training
    assert (training.lr, training.warmup_fraction, training.decay_fraction) == (5e-5, 0.0, 0.2)
    assert (training.max_grad_norm, training.precision) == (1.0, "float32")
    assert (config.data.batch_tokens, config.data.sequence_length, config.data.epochs) == (4096, 1024, 1)
    assert {model.dtype for model in config.models().values()} == {"bfloat16"}
    assert Path(config.out).name == name
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("pair", PAIRS)
def test_the_recipes_are_planned_from_the_models_real_configs(pair: str, data_file, tmp_path: Path) -> None:
    config = RunConfig.from_toml(ROOT / PAIRS[pair])
    found = {}
    for name, model in config.models().items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(shape_of(data_file, model.path.split("/")[1])), encoding="utf-8")
        found[name] = find_config(path)
    speed = Speed(
        name="an H100 at 400 TFLOP/s", bfloat16=400e12, float32=50e12, bandwidth=3e12, memory=80 * 10**9,
        source="the reference's assumption", harvest_share=1.0,
    )  # fmt: skip
    shown = plan(config, vram_bytes=speed.memory, model_configs=found, speed=speed)
    own = {name: model_config(model.path) for name, model in config.models().items()}
    again = plan(config, vram_bytes=speed.memory, model_configs=own, speed=speed)
    assert (again.models, again.placements, again.time) == (shown.models, shown.placements, shown.time)
    assert shown.best is not None
    assert 1e3 * shown.time.harvest / shown.time.harvested_tokens * 4096 == pytest.approx(
        HARVEST_MS[pair], rel=0.08
    )
    width = sum(model.d_model for model in shown.models.values())
    assert shown.data.whole_store == 400_000_000 * (2 * width + 8)
    said = re.search(r"activations: ([\d.]+) TB", (ROOT / PAIRS[pair]).read_text(encoding="utf-8"))
    assert said[1] == f"{shown.data.whole_store / 1e12:.1f}"


@pytest.mark.parametrize("name", SHAPES)
def test_the_tables_shapes_are_those_of_the_real_configs(name: str, data_file) -> None:
    real = shape_of(data_file, name.split("/")[1])
    assert {key: real[key] for key in SHAPES[name]} == SHAPES[name]


@pytest.mark.parametrize("page", ["run.md", "scale.md"])
def test_every_configuration_on_the_page_is_one(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    needed = {"base": "a", "distilled": "b", "text": "t.txt", "out": "o", "n_latents": 256}
    blocks = re.findall(r"^```toml\n(.*?)^```", text, re.M | re.S)
    for block in blocks:
        config = RunConfig.from_dict({**needed, **tomllib.loads(block)})
        assert RunConfig.from_dict(config.to_dict()) == config
    assert len(blocks) == 2


def test_the_page_holds_the_lines_that_the_planner_gives() -> None:
    page = scale_table.PAGE.read_text(encoding="utf-8")
    config = RunConfig.from_toml(ROOT / PAIRS["1.5B"])
    cells = row("1.5B", config, next(machine for machine in MACHINES if machine.name == "1 H100"))
    assert f"| {' | '.join(cells)} |" in page


@pytest.mark.slow
def test_the_pages_tables_are_current() -> None:
    page = scale_table.PAGE.read_text(encoding="utf-8")
    assert scale_table.with_tables(page, scale_table.tables()) == page, "run python -m benchmarks.scale_table"


def test_only_what_stands_between_the_marks_is_made_anew() -> None:
    page = f"head\n{scale_table.BEGIN}\nold\n{scale_table.END}\ntail\n"
    fresh = scale_table.with_tables(page, "\n".join(scale_table.markdown([["a", "b"], ["1", "2"]])))
    assert fresh == page.replace("old", "| a | b |\n|---|---|\n| 1 | 2 |")
