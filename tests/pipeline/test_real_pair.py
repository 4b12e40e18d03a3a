"""The paper's configuration on a narrow pair: real configs cut down, real tokenizers, real traces."""

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.run import run
from tests.models.derived_configs import derived_config, narrow_model

ROOT = Path(__file__).resolve().parents[2]
MODELS = {
    "base": ("Qwen2.5-Math-1.5B", "tokenizers/qwen2.5"),
    "distilled": ("DeepSeek-R1-Distill-Qwen-1.5B", "tokenizers/r1_distill_qwen"),
}


def write_model(folder: Path, name: str, tokenizer: Path, *, data_file: Callable[[str], Path]) -> None:
    config = derived_config(name, lambda real: json.loads(data_file(f"configs/{real}.json").read_text()))
    model = narrow_model(config, n_vocab=151_936).to(torch.bfloat16)
    model.save_pretrained(folder)
    for file in tokenizer.iterdir():
        shutil.copy(file, folder / file.name.replace(".assembled", ""))


def openthoughts_records(data_file: Callable[[str], Path]) -> list[str]:
    traces = data_file("thought_anchors_r1_14b/correct_base_solution").glob("*/base_solution.json")
    lines = []
    for trace in sorted(traces):
        thought, _, solution = json.loads(trace.read_text())["full_cot"].partition("</think>")
        thought = thought.split("<think>")[-1].strip()
        said = (
            f"<|begin_of_thought|>\n{thought}\n<|end_of_thought|>\n"
            f"<|begin_of_solution|>\n{solution.strip() or 'None.'}\n<|end_of_solution|>"
        )
        turns = [{"from": "user", "value": "Solve it."}, {"from": "assistant", "value": said}]
        lines.append(json.dumps({"system": "Reason.", "conversations": turns}))
    return lines


@pytest.mark.slow
def test_the_papers_configuration_runs_on_a_narrow_pair(
    tmp_path: Path, data_file: Callable[[str], Path]
) -> None:
    for name, (config, tokenizer) in MODELS.items():
        write_model(tmp_path / name, config, data_file(tokenizer), data_file=data_file)
    (tmp_path / "ot.jsonl").write_text("\n".join(openthoughts_records(data_file)) + "\n", encoding="utf-8")
    values = tomllib.loads((ROOT / "configs/field/r1_distill_qwen_1_5b.toml").read_text(encoding="utf-8"))
    for name in MODELS:
        values[name]["path"] = str(tmp_path / name)
    values["data"] |= {
        "n_tokens": 8000,
        "held_out_tokens": 3000,
        "buffer_bytes": 1 << 24,
        "splice_tokens": 100,
    }
    values["data"] |= {"sequences_per_harvest": 1, "sequence_length": 256}
    values |= {"text": str(tmp_path / "ot.jsonl"), "out": str(tmp_path / "run"), "device": "cpu"}
    values |= {"n_latents": 128, "activation_fn": {"kind": "batch_topk", "k": 8}}

    found = run(RunConfig.from_dict(values))

    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert set(range(151_643, 151_650)) <= set(record["data"]["exclude_token_ids"])
    assert set(found.splice["text"]) == {"base", "distilled"}
    fingerprints = [source.tokenizer_fingerprint for source in found.crosscoder.sources]
    assert len(set(fingerprints)) == 2
    assert None not in fingerprints
