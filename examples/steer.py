"""Answers of tiny-reasoner under one reasoning latent: shorter at -0.6, as it is at 0, over-thinking at 0.6.

python examples/steer.py runs/demo
"""

import json
import random
import sys
from pathlib import Path

import torch

import crosscoders as cc
from crosscoders.models import generate
from crosscoders.zoo import model_path
from crosscoders.zoo.arithmetic import sample_problem
from crosscoders.zoo.base_text import prompt
from crosscoders.zoo.vocabulary import END_OF_TEXT, encode, token_ids

STRENGTHS, N_PROBLEMS, SEED = (-0.6, 0.0, 0.6), 3, 7


def reflection_latent(run: Path) -> int:
    """The latent that best told, on one half of the held-out text, where self-reflection starts."""
    rows = json.loads((run / "categories.json").read_text(encoding="utf-8"))
    return next(r["latent"] for r in rows if (r["kind"], r["category"]) == ("onset", "self-reflection"))


def main() -> None:
    """Print the answers to a few problems that were not trained on; strengths are in residual norms."""
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    crosscoder, latent = cc.from_pretrained(run / "crosscoder"), reflection_latent(run)
    model = cc.load_model(model_path("tiny-reasoner", "distilled"), name="distilled")
    rng = random.Random(SEED)
    prompts = [list(encode(prompt(sample_problem(rng, held_out=True)))) for _ in range(N_PROBLEMS)]
    for strength in STRENGTHS:
        hook = cc.SteeringHook(
            crosscoder, {latent: strength}, source="distilled", at_tokens=(token_ids()["."],)
        )
        with hook.on(model):
            answers = generate(
                model,
                prompts,
                max_new_tokens=200,
                stop_ids={token_ids()[END_OF_TEXT]},
                temperature=1.0,
                generator=torch.Generator().manual_seed(SEED),
            )
        print(f"\nlatent {latent} at strength {strength:+.1f}")
        for ids, answer in zip(prompts, answers, strict=True):
            print(" ", model.tokenizer.decode(ids + answer))


if __name__ == "__main__":
    main()
