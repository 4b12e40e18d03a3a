"""Train a crosscoder on a list of tensors, with no model involved, and find what was planted.

Two sources of width 32 share 24 directions; 8 more exist only in the second. Each token shows a few of them.
Run: `python examples/own_tensors.py`. It takes some seconds on a CPU.
"""

import torch
import torch.nn.functional as F

import crosscoders as cc

D_MODEL, N_SHARED, N_ADDED, N_LATENTS, RATE = 32, 24, 8, 64, 0.08
N_BATCHES, BATCH_TOKENS = 1500, 256


def planted_directions(generator: torch.Generator) -> torch.Tensor:
    """Unit directions `[direction, width]`; the last `N_ADDED` are zero in the first source."""
    per_source = torch.randn(2, N_SHARED + N_ADDED, D_MODEL, generator=generator)
    per_source = F.normalize(per_source, dim=-1)
    per_source[0, N_SHARED:] = 0
    return torch.cat(list(per_source), dim=1)


def draw_batches(directions: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
    """Sparse positive combinations of the directions: a list of `[batch, width]` tensors."""
    batches = []
    for _ in range(N_BATCHES):
        strength = 1 + torch.rand(BATCH_TOKENS, len(directions), generator=generator)
        shown = torch.rand(BATCH_TOKENS, len(directions), generator=generator) < RATE
        batches.append((strength * shown) @ directions)
    return batches


def sources_with_scale(batches: list[torch.Tensor]) -> tuple[cc.Source, ...]:
    """One source per model; the scale makes both weigh alike in the loss."""
    halves = torch.cat(batches[:20]).split(D_MODEL, dim=1)
    return tuple(
        cc.Source(
            name=name,
            d_model=D_MODEL,
            scale=cc.scale_from_mean_norm(float(half.norm(dim=1).mean()), D_MODEL),
        )
        for name, half in zip(("base", "distilled"), halves, strict=True)
    )


def main() -> None:
    """Train, then say for each planted direction which latent carries it and where that latent lives."""
    generator = torch.Generator().manual_seed(0)
    directions = planted_directions(generator)
    batches = draw_batches(directions, generator)
    config = cc.CrosscoderConfig(
        sources=sources_with_scale(batches), n_latents=N_LATENTS, activation_fn=cc.BatchTopK(k=3)
    )
    crosscoder = cc.Crosscoder(config, generator=generator)
    trainer = cc.Trainer(crosscoder, [cc.Reconstruction(), cc.AuxK()], config=cc.TrainerConfig(lr=2e-3))
    trainer.fit(batches)

    crosscoder.eval()
    ratio = cc.metrics.normalized_decoder_ratio(crosscoder.decoder_norms(space="raw")).detach()
    rows = F.normalize(crosscoder.W_dec.detach(), dim=1)
    cosine, latent = (F.normalize(directions, dim=1) @ rows.T).max(dim=1)
    for kind, part in (("shared", slice(0, N_SHARED)), ("only distilled", slice(N_SHARED, None))):
        print(
            f"{kind:15s} found {int((cosine[part] > 0.9).sum())} of {len(cosine[part])}, "
            f"normalized decoder ratio {ratio[latent[part]].mean():.2f}"
        )


if __name__ == "__main__":
    main()
