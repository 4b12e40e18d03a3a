"""The paper's own tokenizers from the real data files, each loaded once."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

R1 = "tokenizers/r1_distill_qwen"


def qwen_tokenizer(data_file: Callable[[str], Path]) -> PreTrainedTokenizerFast:
    """Qwen2.5, as its files stand."""
    return _auto(data_file("tokenizers/qwen2.5"))


def r1_tokenizer(data_file: Callable[[str], Path]) -> PreTrainedTokenizerFast:
    """R1-Distill-Qwen with its real chat template."""
    return _fast(data_file(f"{R1}/tokenizer.assembled.json"), data_file(f"{R1}/tokenizer_config.json"))


def r1_folder(folder: Path, data_file: Callable[[str], Path]) -> Path:
    """A folder with the R1 tokenizer under the names that `from_pretrained` looks for."""
    for stored, name in (("tokenizer.assembled.json", "tokenizer.json"), ("tokenizer_config.json",) * 2):
        (folder / name).write_bytes(data_file(f"{R1}/{stored}").read_bytes())
    return folder


def r1_traces(data_file: Callable[[str], Path]) -> list[str]:
    """The 20 real reasoning traces, prompt included."""
    files = sorted(data_file("thought_anchors_r1_14b").glob("*/*/base_solution.json"))
    return [json.loads(file.read_text(encoding="utf-8"))["full_cot"] for file in files]


@cache
def _auto(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


@cache
def _fast(file: Path, config: Path) -> PreTrainedTokenizerFast:
    values = json.loads(config.read_text(encoding="utf-8"))
    special = {name: values[name]["content"] for name in ("bos_token", "eos_token", "pad_token")}
    return PreTrainedTokenizerFast(tokenizer_file=str(file), chat_template=values["chat_template"], **special)
