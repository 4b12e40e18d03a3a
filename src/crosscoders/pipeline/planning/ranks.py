"""How a run is split over the processes of `torchrun`, and what one of them trains."""

import dataclasses
from dataclasses import dataclass

from crosscoders._typing import typed
from crosscoders.pipeline.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class RankLayout:
    """Ranks over which a run is split; each has a device of its own.

    Args:
        n_ranks: Processes that `torchrun` starts.
        latent_shards: Ranks over which the latents are split; the others split the tokens of a batch.

    Raises:
        ValueError: A number below 1, or ranks that are no multiple of the shards.
    """

    n_ranks: int = 1
    latent_shards: int = 1

    def __post_init__(self) -> None:
        if self.n_ranks < 1 or self.latent_shards < 1 or self.n_ranks % self.latent_shards:
            raise ValueError(
                f"plan: ranks must be a positive multiple of the latent shards, got {self.n_ranks} ranks and "
                f"{self.latent_shards} shards."
            )

    @property
    def data_ranks(self) -> int:
        """Ranks over which the tokens of a batch are split."""
        return self.n_ranks // self.latent_shards


@typed
def rank_config(config: RunConfig, layout: RankLayout) -> RunConfig:
    """What the fullest rank trains, as a configuration of its own.

    Its share of the latents and of a batch, by autograd; `torch.chunk` gives the first rank the largest part.

    Args:
        config: The whole run.
        layout: How it is split.

    Returns:
        The configuration; the run's own where there is one rank.

    Raises:
        ValueError: A rank would have no latents, or no tokens of a batch.
    """
    if layout.n_ranks == 1:
        return config
    _check_shares(config.n_latents, "latents", n_ranks=layout.latent_shards)
    _check_shares(config.data.batch_tokens, "tokens of a batch", n_ranks=layout.data_ranks)
    n_latents = -(-config.n_latents // layout.latent_shards)
    named = {name: getattr(config.activation_fn, name, None) for name in ("k", "k_initial")}
    lower = {name: n_latents for name, value in named.items() if value is not None and value > n_latents}
    return dataclasses.replace(
        config,
        n_latents=n_latents,
        activation_fn=dataclasses.replace(config.activation_fn, **lower),
        data=dataclasses.replace(config.data, batch_tokens=-(-config.data.batch_tokens // layout.data_ranks)),
        training=dataclasses.replace(config.training, backend="reference"),
    )


def _check_shares(n: int, what: str, *, n_ranks: int) -> None:
    """Refuse ranks of which `torch.chunk` would leave one without any."""
    if -(-n // n_ranks) * (n_ranks - 1) >= n:
        raise ValueError(f"plan: {n} {what} leave some of {n_ranks} ranks without any; take fewer ranks.")
