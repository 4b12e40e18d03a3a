"""Where latents fire: one pass over rows of text, kept sparse, latent after latent."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.reasoning.reading import read_latents
from crosscoders.row_stream import SupportsHarvest


@dataclass(frozen=True, kw_only=True)
class Firings:
    """Every firing of every latent on some rows of text, sorted by latent and then by token.

    Args:
        ptr: Where the firings of each latent start, and last the number of firings.
        token: Token of each firing, counted through all rows.
        activation: Its value, above 0.
        n_positions: Tokens of a row.
        n_counted: Tokens on which latents were read.
    """

    ptr: Int[Tensor, " _latent_and_end"]
    token: Int[Tensor, " nnz"]
    activation: Float[Tensor, " nnz"]
    n_positions: int
    n_counted: int

    @property
    def n_latents(self) -> int:
        """Number of latents, those that never fire included."""
        return len(self.ptr) - 1

    @typed
    def latent(self) -> Int[Tensor, " nnz"]:
        """The latent of each firing."""
        return torch.repeat_interleave(torch.arange(self.n_latents), self.ptr.diff())

    @typed
    def max_activation(self) -> Float[Tensor, " latent"]:
        """Largest activation of each latent; 0 where it never fires."""
        return torch.zeros(self.n_latents).scatter_reduce_(0, self.latent(), self.activation, reduce="amax")

    @typed
    def histogram(self, *, n_bins: int) -> Int[Tensor, "latent _bin"]:
        """Counts of each latent's activations in equal bins from 0 to its largest one.

        Args:
            n_bins: Bins; each holds its lower edge and not its upper one, but for the last.
        """
        latent, most = self.latent(), self.max_activation().double()
        at = (self.activation.double() / most[latent] * n_bins).long().clamp(max=n_bins - 1)
        counts = torch.bincount(latent * n_bins + at, minlength=self.n_latents * n_bins)
        return counts.view(self.n_latents, n_bins)

    @typed
    def at(self, latent: Int[Tensor, " _any"], token: Int[Tensor, " _any"]) -> Float[Tensor, " _any"]:
        """The activations of latents at tokens, 0 where they do not fire.

        Args:
            latent: Latent of each pair.
            token: Token of each pair.
        """
        if not len(self.token):
            return torch.zeros(len(token))
        width = max(int(self.token.max()), int(token.max()) if len(token) else 0) + 1
        keys = self.latent() * width + self.token
        wanted = latent * width + token
        found = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return torch.where(keys[found] == wanted, self.activation[found], 0.0)


@typed
def read_firings(
    crosscoder: Crosscoder,
    sources: SupportsHarvest,
    tokens: Int[Tensor, "batch pos"],
    *,
    mask: Bool[Tensor, "batch pos"],
    rows_at_a_time: int,
) -> Firings:
    """Run the models over rows of text once and keep what fires.

    Args:
        crosscoder: A trained crosscoder; it works in evaluation mode and is left in the mode it had.
        sources: The models, each with its hook.
        tokens: Rows of token ids.
        mask: Which tokens count.
        rows_at_a_time: Rows that go through the models together.

    Returns:
        The firings, on the CPU: 20 bytes each.

    Raises:
        ValueError: A mask that counts no token.
    """
    n_positions = tokens.shape[1]
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for rows in read_latents(crosscoder, sources, tokens, mask=mask, rows_at_a_time=rows_at_a_time):
        fires = rows.activation > 0
        token = (rows.first_row + rows.row[fires]) * n_positions + rows.position[fires]
        parts.append((rows.latent[fires].int(), token.int(), rows.activation[fires]))
    latent, token, activation = (torch.cat(part) for part in zip(*parts, strict=True))
    by_latent, order = torch.sort(latent, stable=True)  # tokens already ascend
    return Firings(
        ptr=torch.searchsorted(by_latent, torch.arange(crosscoder.n_latents + 1, dtype=torch.int32)),
        token=token[order].long(),
        activation=activation[order],
        n_positions=n_positions,
        n_counted=int(mask.sum()),
    )
