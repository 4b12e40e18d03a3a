"""What each patch of the causal check adds to the first model's activation: anchors, sets and controls."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from crosscoders.crosscoder import Crosscoder
from crosscoders.interventions.ablation.codes import latent_contribution, read_codes
from crosscoders.sources import Source, column_slices

NO_PATCH, MEANS = "no patch", "difference of means"
ALL_LATENTS, RECONSTRUCTION, TRUE_DIFFERENCE = "all latents", "all latents and bias", "true difference"
CONTROL_KINDS = ("count", "norm", "identity")


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """What a patch adds to the first model's raw activation.

    Args:
        added: [token d_model].
        n_wanted: Tokens at which a size was asked for; 0 where none was.
        n_unscalable: Those among them at which nothing is there to be scaled to it.
    """

    added: Tensor
    n_wanted: int = 0
    n_unscalable: int = 0


class PatchTokens:
    """Clean activations of some tokens in both models, their codes, and what the latents tell apart.

    Args:
        crosscoder: Read in evaluation mode.
        x_raw: [token width] raw activations of all sources, at least one token.
        pair: The source that is patched from, and the one that is patched into.
    """

    def __init__(self, crosscoder: Crosscoder, x_raw: Tensor, *, pair: tuple[Source, Source]) -> None:
        self.crosscoder = crosscoder
        self._first, self._second = (column_slices(crosscoder.sources)[source.name] for source in pair)
        self.start, self.end = x_raw[:, self._first], x_raw[:, self._second]
        self._codes = read_codes(crosscoder, x_raw)

    def latents(self, chosen: Tensor, *, decoder: Tensor | None = None) -> Tensor:
        """[token d_model] sum over a set of f_j (d_j^second - d_j^first), in raw space.

        Args:
            chosen: The set.
            decoder: Rows in place of the latents' own, in the space of the stored decoder.
        """
        return self._told_apart(latent_contribution(self.crosscoder, self._codes, chosen, decoder=decoder))

    @torch.no_grad()
    def reconstruction(self) -> Tensor:
        """[token d_model] the reconstruction of the second source less that of the first, biases included."""
        return self._told_apart(self.crosscoder.decode(self._codes))

    @torch.no_grad()
    def bias(self) -> Tensor:
        """[1 d_model] what the decoder's biases alone put between the sources."""
        silent = self.crosscoder.W_dec.new_zeros(1, self.crosscoder.n_latents)
        return self._told_apart(self.crosscoder.decode(silent))

    def _told_apart(self, columns: Tensor) -> Tensor:
        return (columns[:, self._second] - columns[:, self._first]).to(self.start)


Patch = Callable[[PatchTokens], Edit]


def anchor_patches(mean_difference: Tensor | None) -> dict[str, Patch]:
    """The patches that every set is compared with, by name.

    Args:
        mean_difference: Mean of second less first activation [d_model] in raw space, or None.
    """

    def means(tokens: PatchTokens) -> Edit:
        assert mean_difference is not None  # this patch is there only with one
        return Edit(added=mean_difference.to(tokens.start).expand_as(tokens.start))

    patches: dict[str, Patch] = {
        NO_PATCH: lambda tokens: Edit(added=torch.zeros_like(tokens.start)),
        MEANS: means,
        ALL_LATENTS: lambda tokens: Edit(added=tokens.reconstruction() - tokens.bias()),
        RECONSTRUCTION: lambda tokens: Edit(added=tokens.reconstruction()),
        TRUE_DIFFERENCE: lambda tokens: Edit(added=tokens.end - tokens.start),
    }
    return {name: patch for name, patch in patches.items() if name != MEANS or mean_difference is not None}


def set_patch(latents: Tensor) -> Patch:
    """The patch of a set of latents: its own contribution difference."""
    return lambda tokens: Edit(added=tokens.latents(latents))


def control_patches(latents: Tensor, drawn: Tensor) -> Mapping[str, Patch]:
    """The controls of a set, made from as many other latents, by kind (see `causal_check`).

    Args:
        latents: The set.
        drawn: As many others.
    """

    def rescaled(tokens: PatchTokens, added: Tensor) -> Edit:
        wanted, norm = tokens.latents(latents).norm(dim=1), added.norm(dim=1)
        factor = torch.where(norm > 0, wanted / norm, 0.0)
        n_unscalable = int(((norm == 0) & (wanted > 0)).sum())
        return Edit(
            added=added * factor[:, None], n_wanted=int((wanted > 0).sum()), n_unscalable=n_unscalable
        )

    def identity(tokens: PatchTokens) -> Edit:
        rows = tokens.crosscoder.W_dec.detach()[drawn]
        return rescaled(tokens, tokens.latents(latents, decoder=rows))

    return {
        "count": set_patch(drawn),
        "norm": lambda tokens: rescaled(tokens, tokens.latents(drawn)),
        "identity": identity,
    }


def draw_controls(
    latents: Tensor, is_live: Tensor, *, n_draws: int, generator: torch.Generator
) -> list[Tensor]:
    """Random sets of live latents outside a set, as many in each as in the set.

    Args:
        latents: The set, without repetition.
        is_live: Which latents may be drawn [latent].
        n_draws: Sets to draw.
        generator: Source of randomness, on the CPU.

    Raises:
        ValueError: Fewer live latents outside the set than in it.
    """
    may_be_drawn = is_live.clone()
    may_be_drawn[latents] = False
    others = may_be_drawn.nonzero().flatten()
    if n_draws and len(others) < len(latents):
        raise ValueError(
            f"causal_check: a control draws as many live latents as the set has, but outside the set of "
            f"{len(latents)} there are {len(others)}; take a smaller set, or n_draws=0 for no controls."
        )
    return [others[torch.randperm(len(others), generator=generator)[: len(latents)]] for _ in range(n_draws)]
