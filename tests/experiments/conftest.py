"""A toy pair with text, prompts and word pairs, and a plan over all experiments that runs in seconds."""

import itertools
import json
from pathlib import Path

import pytest

from crosscoders.zoo.recipe import Architecture
from crosscoders.zoo.train import build_model
from crosscoders.zoo.vocabulary import build_tokenizer

SHAPE = Architecture(n_layers=2, d_model=16, d_mlp=16, n_heads=2, n_kv_heads=1)
NOUNS = "dog cat bird boat box cup card tree ball bell".split()


@pytest.fixture(scope="session")
def pair(tmp_path_factory) -> Path:
    """Folder with two untrained models, a text, prompts, and a task of word pairs."""
    folder = tmp_path_factory.mktemp("pair")
    for seed, name in enumerate(("base", "distilled")):
        build_model(SHAPE, seed=seed).save_pretrained(folder / name)
        build_tokenizer().save_pretrained(folder / name)
    stories = [
        f"Anna found the {noun}. Wait, said Tom. But the dog was at the park. Therefore, {name} went on. "
        f"Alternatively, they could see the {noun}."
        for noun in NOUNS
        for name in ("Tom", "Mia", "Ben")
    ]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": s}) + "\n" for s in stories * 12))
    prompts = [{"prompt": f"Question: What is {n} + 1?", "answer": str(n + 1)} for n in range(4)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    (folder / "words").mkdir()
    pairs = [{"input": noun, "output": other} for noun, other in itertools.pairwise(NOUNS)]
    (folder / "words" / "next_noun.json").write_text(json.dumps(pairs))
    return folder


@pytest.fixture
def plan_text(pair: Path) -> str:
    """A reproduction's TOML: one small crosscoder, every experiment at its smallest."""
    return f"""
title = "Toy <pair>"
[runs.field]
base = "{pair / "base"}"
distilled = "{pair / "distilled"}"
text = "{pair / "text.jsonl"}"
n_latents = 64
activation_fn = {{kind = "topk", k = 6}}
data = {{sequence_length = 64, batch_tokens = 128, held_out_tokens = 1500, splice_tokens = 100}}
training = {{lr = 0.003}}
[material]
prompts = "{pair / "prompts.jsonl"}"
grader = "gsm8k"
max_new_tokens = 6
temperature = 1.0
word_pairs = "{pair / "words"}"
word_tasks = ["next_noun"]
[annotation]
n_latents = 6
[ablation]
top_percents = [5.0, 50.0]
n_occurrences = 10
n_random_sets = 2
[steering]
strengths = [-0.5, 0.0, 0.5]
n_prompts = 4
[geometry]
n_components = 4
n_quadruples = 200
n_permutations = 19
"""
