"""Steer the distilled model by its self-reflection latent, and by a random direction as a control.

python examples/steering_sweep.py runs/demo

It takes about a minute on a CPU and needs a finished run of the bundled pair, such as `crosscoders demo`
writes.
"""

import sys
from pathlib import Path

import torch

import crosscoders as cc
from crosscoders.experiments import open_models
from crosscoders.experiments.bundled_material import count_acts
from crosscoders.interventions.sweeps import SweepOptions, additive_direction, random_directions, sweep
from crosscoders.report.tables import write_csv
from crosscoders.zoo.arithmetic import answer
from crosscoders.zoo.base_text import prompt
from crosscoders.zoo.grader import ArithmeticGrader
from crosscoders.zoo.measure import held_out_problems
from crosscoders.zoo.vocabulary import END_OF_TEXT, encode, token_ids


def main() -> None:
    """Sweep, print one line per direction and strength, and show what the first answer becomes."""
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    crosscoder, sources = open_models(run)
    latent = cc.LatentTable.from_json(run / "latents.json").best("onset/self-reflection")
    unit = cc.SteeringHook(crosscoder, {latent: 1.0}, source="distilled")
    hook_name, stops = unit.source.hook_name, (token_ids()["."],)  # a clause can start after a full stop
    directions = [
        additive_direction(
            unit.vector, name=f"latent {latent}", kind="latent", hook_name=hook_name, at_tokens=stops
        ),
        *random_directions(
            unit.vector, n=1, generator=torch.Generator().manual_seed(0), hook_name=hook_name, at_tokens=stops
        ),
    ]
    problems = held_out_problems(60, seed=7)
    found = sweep(
        sources.models["distilled"],
        [encode(prompt(problem)) for problem in problems],
        directions=directions,
        options=SweepOptions(strengths=(-0.6, 0.3, 0.6, 1.0), stop_ids=(token_ids()[END_OF_TEXT],)),
        count_categories=count_acts,
        grade=ArithmeticGrader().grade,
        references=[str(answer(problem)) for problem in problems],
    )
    for answers in (found.unsteered, *found.steered):
        reflections, tokens, accuracy = (
            found.mean(answers, measure) for measure in ("count/self-reflection", "tokens", "accuracy")
        )
        print(
            f"{answers.direction:12} {answers.strength:+.1f}  {reflections.mean:.2f} reflections "
            f"[{reflections.low:.2f}, {reflections.high:.2f}]  {tokens.mean:5.1f} tokens  "
            f"{accuracy.mean:.0%} right  {found.regime(answers)}"
        )
    for strength in (0.0, 0.6, 1.0):
        print(f"\n{strength:+.1f}: {found.at(f'latent {latent}', strength).texts[0]}")
    write_csv(run / "steering_sweep.csv", found.rows())


if __name__ == "__main__":
    main()
