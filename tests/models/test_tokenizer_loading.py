"""A model's folder gives the tokenizer that its files describe, whatever class they name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from crosscoders.models.load import _own_tokenizer

TEXT = "Let me check:\n\n  2 + 2 = 4.  Wait, \thmm"


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_r1_files_keep_every_space_though_they_name_a_llama_class(
    model_type: str, tmp_path: Path, data_file: Callable[[str], Path]
) -> None:
    files = data_file("tokenizers/r1_distill_qwen")
    shutil.copy(files / "tokenizer.assembled.json", tmp_path / "tokenizer.json")
    shutil.copy(files / "tokenizer_config.json", tmp_path / "tokenizer_config.json")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer = _own_tokenizer(tmp_path)
    ids = tokenizer(TEXT)["input_ids"]
    assert ids[0] == 151646  # its BOS
    assert tokenizer.decode(ids[1:]) == TEXT


def test_a_folder_without_tokenizer_files_gives_none(tmp_path: Path) -> None:
    assert _own_tokenizer(tmp_path) is None
