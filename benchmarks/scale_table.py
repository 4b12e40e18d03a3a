"""The table of docs/scale.md: pairs, hardware, hours and disk, as the planner gives them.

`python -m benchmarks.scale_table` writes it between the marks in that page; `--check` only says whether the
page is current. Nothing is downloaded: the shapes of the models stand below.
"""

import argparse
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Qwen2Config

from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.planning.plan import plan
from crosscoders.pipeline.planning.ranks import RankLayout
from crosscoders.pipeline.planning.result import HOST, Plan
from crosscoders.pipeline.planning.speed import SPEEDS
from crosscoders.pipeline.planning.text import shown_hours
from crosscoders.pipeline.sizes import shown_bytes

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- scale:begin -->", "<!-- scale:end -->"
_QWEN_1_5B = {
    "hidden_size": 1536, "num_hidden_layers": 28, "intermediate_size": 8960,
    "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151_936,
}  # fmt: skip
_QWEN_7B = {
    "hidden_size": 3584, "num_hidden_layers": 28, "intermediate_size": 18_944,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152_064,
}  # fmt: skip
_QWEN_14B = {
    "hidden_size": 5120, "num_hidden_layers": 48, "intermediate_size": 13_824,
    "num_attention_heads": 40, "num_key_value_heads": 8, "vocab_size": 152_064,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {  # of the models' config.json, as far as memory and work depend on it
    "Qwen/Qwen2.5-Math-1.5B": {**_QWEN_1_5B, "tie_word_embeddings": True},
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": {**_QWEN_1_5B, "tie_word_embeddings": False},
    "Qwen/Qwen2.5-Math-7B": {**_QWEN_7B, "tie_word_embeddings": False},
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": {**_QWEN_7B, "tie_word_embeddings": False},
    "Qwen/Qwen2.5-14B": {**_QWEN_14B, "tie_word_embeddings": False},
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": {**_QWEN_14B, "tie_word_embeddings": False},
}


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A machine: its devices, and how a run uses them."""

    name: str
    gpu: str
    n_devices: int = 1
    ranks: RankLayout = dataclasses.field(default_factory=RankLayout)


PAIRS = {
    "1.5B": "configs/paper/r1_distill_qwen_1_5b.toml",
    "7B": "configs/paper/r1_distill_qwen_7b.toml",
    "14B": "configs/paper/r1_distill_qwen_14b.toml",
}
MACHINES = (
    Hardware(name="1 RTX 4090", gpu="rtx4090"),
    Hardware(name="1 A100", gpu="a100"),
    Hardware(name="1 H100", gpu="h100"),
    Hardware(name="2 H100, models on the second", gpu="h100", n_devices=2),
    Hardware(name="8 H100, 8 ranks", gpu="h100", ranks=RankLayout(n_ranks=8)),
)
# What a configuration is changed to so that it asks for a placement.
_CHANGES: dict[str, dict[str, Any]] = {
    "both whole, spliced": {},
    "both whole": {},
    "both truncated": {},
    "one after the other": {"offload": True},
    "models on a second device": {"device": "cuda:1"},
}


def model_config(name: str) -> Any:
    """A transformers config with the shapes of a model."""
    return Qwen2Config(**SHAPES[name])


def placed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """The run with both models placed as a placement wants it."""
    models = {name: dataclasses.replace(model, **changes) for name, model in config.models().items()}
    overlap = "process" if "device" in changes else "none"
    return dataclasses.replace(config, **models, system=dataclasses.replace(config.system, overlap=overlap))


def planned(config: RunConfig, machine: Hardware) -> tuple[Plan, str | None]:
    """The plan on a machine in the best placement that fits, and its name; None where nothing fits."""
    configs = {name: model_config(model.path) for name, model in config.models().items()}
    speed = SPEEDS[machine.gpu]

    def planned_as(asked: RunConfig) -> Plan:
        return plan(
            asked, vram_bytes=speed.memory, model_configs=configs, ranks=machine.ranks,
            n_devices=machine.n_devices, speed=speed,
        )  # fmt: skip

    apart = _CHANGES["models on a second device"] if machine.n_devices > 1 else {}
    first = planned_as(placed(config, apart))
    if first.best is None or not _CHANGES[first.best.name]:
        return first, first.best and first.best.name
    return planned_as(placed(config, _CHANGES[first.best.name])), first.best.name


def row(pair: str, config: RunConfig, machine: Hardware) -> list[str]:
    """One line of the table."""
    found, name = planned(config, machine)
    if name is None or found.time is None:
        short = max(found.placements, key=lambda placement: placement.headroom).headroom
        return [pair, machine.name, f"does not fit: {shown_bytes(-short)} short", "", "", "", "", ""]
    placement = next(p for p in found.placements if p.name == name)
    on_gpu = max(need for at, need in placement.needs.items() if at != HOST)
    time = found.time
    return [
        pair,
        machine.name,
        name,
        shown_bytes(on_gpu),
        shown_bytes(placement.needs[HOST] * found.ranks.n_ranks),
        shown_hours(time.harvest),
        shown_hours(time.training),
        shown_hours(time.total),
    ]


def hours_table() -> list[str]:
    """Every pair on every machine."""
    head = ["pair", "hardware", "placement", "fullest GPU", "CPU memory", "harvest", "training", "together"]
    rows = [
        row(pair, RunConfig.from_toml(ROOT / path), machine)
        for pair, path in PAIRS.items()
        for machine in MACHINES
    ]
    return markdown([head, *rows])


def disk_table() -> list[str]:
    """What each pair takes on disk, whatever the hardware."""
    rows = [["pair", "a store, per token", "a store of 400M tokens", "one checkpoint", "saved crosscoder"]]
    for pair, path in PAIRS.items():
        config = RunConfig.from_toml(ROOT / path)
        configs = {name: model_config(model.path) for name, model in config.models().items()}
        data = plan(config, vram_bytes=SPEEDS["h100"].memory, model_configs=configs).data
        sizes = (data.row, int(data.whole_store or 0), data.checkpoint, data.crosscoder)
        rows.append([pair, *(shown_bytes(size) for size in sizes)])
    return markdown(rows)


def markdown(rows: list[list[str]]) -> list[str]:
    """Rows of cells as a Markdown table, the first one its head."""
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def tables() -> str:
    """What stands between the marks of the page."""
    speed = SPEEDS["h100"]
    shares = (
        f"Assumed, not measured: reading models reaches {speed.harvest_share:.0%} of a data sheet's dense "
        f"peak, the products of a step {speed.product_share:.0%}, memory {speed.bandwidth_share:.0%} of its "
        f"bandwidth; weights move to a GPU at {speed.transfer / 1e9:.0f} GB/s. What ranks exchange is not "
        "counted."
    )
    return "\n".join(["", *hours_table(), "", shares, "", *disk_table(), ""])


def with_tables(page: str, shown: str) -> str:
    """A page with other text between its marks."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + shown + "\n" + END + rest.split(END)[1]


def main() -> int:
    """Write the tables into the page, or say whether they are current."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the page is stale")
    check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    fresh = with_tables(page, tables())
    if check and fresh != page:
        print("docs/scale.md is stale: run python -m benchmarks.scale_table", file=sys.stderr)
        return 1
    if not check:
        PAGE.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
