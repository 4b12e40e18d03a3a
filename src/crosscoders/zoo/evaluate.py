"""Measure a bundled family on held-out problems and write its model card.

Run: `python -m crosscoders.zoo.evaluate tiny-reasoner`.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

from crosscoders._io import atomic_write_json, atomic_write_text
from crosscoders._typing import typed
from crosscoders.models import LanguageModel, load_model
from crosscoders.zoo import FAMILIES, model_path
from crosscoders.zoo.card import SEED, model_card
from crosscoders.zoo.measure import answer_problems, behaviour, held_out_problems, slip_response
from crosscoders.zoo.recipe import RECIPES

N_PROBLEMS = 500
N_SLIPS = 200


@typed
def measure_member(
    model: LanguageModel, *, n_problems: int = N_PROBLEMS, n_slips: int = N_SLIPS, seed: int = SEED
) -> dict[str, Any]:
    """Greedy and sampled behavior on held-out problems, and the response to planted slips.

    Args:
        model: A checkpoint of the family.
        n_problems: Problems to answer.
        n_slips: Slips to plant (into the first problems of another draw).
        seed: Seed of problems, slips and sampling.

    Returns:
        "greedy" and "sampled": the fields of `Behaviour`; "slips_greedy" and "slips_sampled": those of
        `SlipResponse`. Sampling is at temperature 1.
    """
    problems = held_out_problems(n_problems, seed=seed)
    sampled = answer_problems(model, problems, temperature=1.0, generator=torch.Generator().manual_seed(seed))
    slip_problems = held_out_problems(n_slips, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed + 1)
    return {
        "greedy": dataclasses.asdict(behaviour(problems, answer_problems(model, problems))),
        "sampled": dataclasses.asdict(behaviour(problems, sampled)),
        "slips_greedy": dataclasses.asdict(slip_response(model, slip_problems, seed=seed)),
        "slips_sampled": dataclasses.asdict(
            slip_response(model, slip_problems, seed=seed, temperature=1.0, generator=generator)
        ),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=sorted(FAMILIES))
    parser.add_argument("--models", type=Path, help="folder of the checkpoints (default: the bundled ones)")
    arguments = parser.parse_args()
    folder = arguments.models or model_path(arguments.family, "base").parent
    measures = {
        name: measure_member(load_model(folder / name, name=name))
        for name in FAMILIES[arguments.family]
        if (folder / name).exists()
    }
    sys.stdout.write(json.dumps(measures, indent=1) + "\n")
    atomic_write_json(folder / "measures.json", measures)
    atomic_write_text(folder / "README.md", model_card(RECIPES[arguments.family], measures))


if __name__ == "__main__":
    main()
