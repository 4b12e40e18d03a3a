"""The smallest real `crosscoders run`: two random models, a file of text; and a job that runs the command."""

import json
import os
import signal
from pathlib import Path

import torch

from crosscoders.cli import main
from crosscoders.zoo.recipe import Architecture
from crosscoders.zoo.train import build_model
from crosscoders.zoo.vocabulary import build_tokenizer
from tests.survival.strike import count_events, strike

SHAPE = Architecture(n_layers=2, d_model=16, d_mlp=16, n_heads=2, n_kv_heads=1)
RESULTS = ("crosscoder/model.safetensors", "crosscoder/config.json", "evaluation.json", "latents.csv")


def make_pair(folder: str) -> None:
    """Write both models and the text."""
    home = Path(folder)
    for seed, name in enumerate(("base", "distilled")):
        build_model(SHAPE, seed=seed).save_pretrained(home / name)
        build_tokenizer().save_pretrained(home / name)
    stories = [
        f"Anna found the {c} ball. Wait, said {n}. But the dog was at the park."
        for c in ("red", "old")
        for n in ("Tom", "Mia")
    ]
    text = "".join(json.dumps({"text": story}) + "\n" for story in stories * 40)
    (home / "text.jsonl").write_text(text)


def write_config(pair: Path, out: Path, *, extra: str = "") -> Path:
    """The configuration of a run, beside its folder."""
    file = out.with_suffix(".toml")
    file.write_text(f"""
base = "{pair / "base"}"
distilled = "{pair / "distilled"}"
text = "{pair / "text.jsonl"}"
out = "{out}"
n_latents = 64
activation_fn = {{kind = "batch_topk", k = 4}}
[data]
sequence_length = 64
sequences_per_harvest = 4
batch_tokens = 128
buffer_bytes = 100_000
held_out_tokens = 500
splice_tokens = 100
[training]
lr = 0.003
log_every_steps = 2
checkpoint_every_steps = 5
{extra}""")
    return file


def command(
    config: str, *, stderr: str, resume: bool = False, part: str = "", event: int = 0, count_into: str = ""
) -> int:
    """`crosscoders run`, which gets SIGTERM at an event of a part, if one is given.

    Args:
        config: Its configuration.
        stderr: File for what it says.
        resume: With --resume.
        part: Where to send the signal.
        event: At which event there.
        count_into: File for the number of events of each part.
    """
    torch.set_num_threads(1)
    os.dup2(os.open(stderr, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
    counts = count_events() if count_into else {}
    if part:
        record = Path(config).with_suffix(".strike")
        strike(part, event, number=signal.SIGTERM, record=record)
    code = main(["run", config, *(["--resume"] if resume else [])])
    if count_into:
        Path(count_into).write_text(json.dumps(counts))
    return code
