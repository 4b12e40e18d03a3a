"""What a run's latents of high NRN do to the next word "Wait", in both models, beside matched random latents.

python examples/ablate.py runs/demo
"""

import sys

import torch

import crosscoders as cc
from crosscoders.bootstrap import clustered_mean
from crosscoders.interventions.ablation import (
    LatentEdit,
    ablation_effects,
    choose_occurrences,
    matched_random_sets,
    target_energy,
    threshold_set,
)

CATEGORY, TOP_PERCENT = "self-reflection", 20


def main() -> None:
    """Ablate the set and one control in both models and print the mean change of the target's logit."""
    study = cc.open_study(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    text, frequency = study.corpus.held_out, study.latents["frequency"]
    generator = torch.Generator().manual_seed(0)
    places = choose_occurrences(
        study.material.markers[CATEGORY],
        n=50,
        generator=generator,
        counted=study.corpus.counted(study.config.data),
    )
    latents = threshold_set(study.latents["nrn_l1"], frequency, top_percent=TOP_PERCENT)
    energy = target_energy(study.crosscoder, study.sources, text, places)
    edits = {
        f"{len(latents)} latents with NRN > 0.5": LatentEdit(latents=latents),
        "base edit at distilled size": LatentEdit(latents=latents, norm_from=study.distilled),
    }
    for at, source in enumerate(study.crosscoder.sources):  # alike in the model in which it is compared
        control = matched_random_sets(
            latents, frequency=frequency, energy=energy[:, at], n_draws=1, generator=generator
        )
        edits[f"random latents like it in {source.name}"] = LatentEdit(
            latents=control.draws[0], size_of=latents, sources=(source.name,)
        )
    kept = study.corpus.kept(text, study.config.data)
    effects = ablation_effects(study.crosscoder, study.sources, text, places, edits, where=kept)
    print(f"Change of the target's logit, {CATEGORY}, {len(places)} occurrences (95% interval over rows):")
    for name in edits:
        for source in effects.edited[name]:
            change = effects.change(name, source).logit
            found = clustered_mean(change, places.rows, generator=generator)
            size = float(effects.relative_size[name][source].mean())
            print(
                f"{name:34s} {source:10s} {found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]  "
                f"||edit||/||h|| {size:.3f}"
            )


if __name__ == "__main__":
    main()
