"""Do latents know the reasoning categories? One latent per category, chosen on one split, scored on another.

Runs the same search four times per seed: on tiny-reasoner, on the same architecture with random weights,
and on
tiny-reasoner with labels shuffled among equal tokens, of all text and within each kind of text (what the kind
of text alone gives away). Prints AUROC of each, the generator's own bound for onsets, and whether the first
is
at least 0.1 above the untrained model and the shuffled labels. The seeds are fixed here.

    python benchmarks/categories.py [--n-tokens N] [--out results.json]
"""

import argparse
import dataclasses
import json
from pathlib import Path

from crosscoders.crosscoder import Crosscoder
from crosscoders.harvest import ModelSources, load_sources
from crosscoders.pipeline.bundled import FAMILY, DemoData, demo_config, demo_corpus, demo_data
from crosscoders.pipeline.categories import CategoryLatent, choose_category_latents, shuffled
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.demo import split_table
from crosscoders.pipeline.fit import fit_crosscoder
from crosscoders.zoo import model_path
from crosscoders.zoo.recipe import RECIPES
from crosscoders.zoo.train import build_model
from crosscoders.zoo.vocabulary import build_tokenizer

SEEDS = (0, 1, 2)
MARGIN = 0.1


def search(
    crosscoder: Crosscoder, sources: ModelSources, data: DemoData, config: RunConfig
) -> list[CategoryLatent]:
    """Choose on one split, score on the other."""
    choose, score = (split_table(crosscoder, sources, labels, config) for labels in (data.choose, data.score))
    return choose_category_latents(choose, score, data.score)


def shuffled_data(data: DemoData, *, seed: int, within_origin: bool) -> DemoData:
    """The same text with its category labels permuted among equal tokens."""
    choose = shuffled(data.choose, seed=seed, within_origin=within_origin)
    score = shuffled(data.score, seed=seed + 1, within_origin=within_origin)
    return dataclasses.replace(data, choose=choose, score=score)


def run_seed(seed: int, n_tokens: int | None) -> dict[str, list[CategoryLatent]]:
    """The four searches of one seed; `n_tokens` of training text, the demo's if None."""
    config = demo_config(f"categories-{seed}", seed=seed)
    if n_tokens is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, n_tokens=n_tokens))
    trained = load_sources(
        {name: str(model_path(FAMILY, name)) for name in ("base", "distilled")}, hook_name=config.hook_name
    )
    architecture = RECIPES[FAMILY].architecture
    untrained = load_sources(
        {
            name: build_model(architecture, seed=100 + 2 * seed + i)
            for i, name in enumerate(("base", "distilled"))
        },
        hook_name=config.hook_name,
        tokenizer=build_tokenizer(),
    )
    data = demo_data(trained, config)
    crosscoder = fit_crosscoder(trained, demo_corpus(data), config)
    control = fit_crosscoder(untrained, demo_corpus(data), config)
    return {
        "tiny-reasoner": search(crosscoder, trained, data, config),
        "untrained": search(control, untrained, data, config),
        **{
            name: search(crosscoder, trained, shuffled_data(data, seed=seed, within_origin=within), config)
            for name, within in (("shuffled", False), ("shuffled in kind", True))
        },
    }


def report(results: dict[int, dict[str, list[CategoryLatent]]]) -> list[str]:
    """One line per kind and category: AUROC per seed, and whether the margin holds for every seed."""
    kinds = ("tiny-reasoner", "untrained", "shuffled", "shuffled in kind")
    lines = [f"{'':34}{''.join(f'{kind:>24}' for kind in kinds)}{'bound':>8}  margin"]
    for at, first in enumerate(results[SEEDS[0]]["tiny-reasoner"]):
        cells, smallest = "", float("inf")
        for kind in kinds:
            cells += f"{' '.join(f'{results[seed][kind][at].auroc:.3f}' for seed in SEEDS):>24}"
        for seed in SEEDS:
            found = {kind: results[seed][kind][at].auroc for kind in results[seed]}
            smallest = min(smallest, found["tiny-reasoner"] - max(found["untrained"], found["shuffled"]))
        bound = "" if first.bound is None else f"{first.bound:.3f}"
        verdict = "holds" if smallest >= MARGIN else "missed"
        lines.append(f"{f'{first.kind} of {first.category}':34}{cells}{bound:>8}  {smallest:+.3f} {verdict}")
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="also write every figure to this JSON file")
    parser.add_argument(
        "--n-tokens", type=int, help="training tokens of each crosscoder (default: the demo's)"
    )
    arguments = parser.parse_args()
    results = {seed: run_seed(seed, arguments.n_tokens) for seed in SEEDS}
    print("\n".join(report(results)))
    if arguments.out:
        plain = {
            seed: {kind: [dataclasses.asdict(found) for found in row] for kind, row in kinds.items()}
            for seed, kinds in results.items()
        }
        arguments.out.write_text(json.dumps(plain, indent=1))


if __name__ == "__main__":
    main()
