"""What each source puts into a latent's pre-activation on the tokens that are shown."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.pipeline.report.windows import Windows
from crosscoders.row_stream import SupportsHarvest
from crosscoders.sources import Source, column_slices, width

_GATHERED_BYTES = 2**23  # 32,768 latents, one core, 2026-11: 0.4 of the time that 2**27 takes; 2**21 the same


class KeptHarvest:
    """Sources whose activations are kept, so that a second reading of the same rows costs nothing.

    Args:
        sources: The models, each with its hook.
        n_tokens: Tokens that will be read.
        max_bytes: Nothing is kept if all of it would take more; every reading then runs the models.
    """

    def __init__(self, sources: SupportsHarvest, *, n_tokens: int, max_bytes: int) -> None:
        self.is_keeping = 4 * n_tokens * width(sources.sources) <= max_bytes
        self._sources = sources
        self._kept: dict[bytes, Tensor] = {}

    @property
    def sources(self) -> Sequence[Source]:
        """The sources in the order of their columns."""
        return self._sources.sources

    @typed
    def harvest(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos width"]:
        """Raw activations, kept on the CPU after the first reading.

        Args:
            tokens: Rows of token ids.
        """
        if not self.is_keeping:
            return self._sources.harvest(tokens)
        key = tokens.numpy().tobytes()
        if key not in self._kept:
            self._kept[key] = self._sources.harvest(tokens).cpu()
        return self._kept[key]


@torch.no_grad()
@typed
def source_shares(
    crosscoder: Crosscoder,
    sources: SupportsHarvest,
    tokens: Int[Tensor, "batch pos"],
    *,
    windows: Windows,
    latent: Int[Tensor, " _place"],
    rows_at_a_time: int,
    max_bytes: int,
) -> Float[Tensor, "_token source"]:
    """Each source's share of the pre-activation, W_enc[source] . x[source], as `inspect_text` gives it.

    x is in the space of the stored weights: normalized, or raw if the scales are folded, which is the same
    share. The bias is nobody's, so shares need not add up to the pre-activation.

    Args:
        crosscoder: A trained crosscoder.
        sources: The models, each with its hook.
        tokens: Rows of token ids.
        windows: Tokens wanted.
        latent: Latent of each window.
        rows_at_a_time: Rows that go through the models together.
        max_bytes: Size of the largest temporary tensor.

    Returns:
        One row per token of the windows, window after window, on the CPU.
    """
    n_positions = tokens.shape[1]
    row = windows.start // n_positions
    shares = torch.zeros(int(windows.length.sum()), len(crosscoder.sources))
    first_token = windows.length.cumsum(dim=0) - windows.length
    longest = int(windows.length.max()) if len(latent) else 1
    at_once = max(1, min(max_bytes, _GATHERED_BYTES) // (4 * longest * crosscoder.width))
    for first in range(0, len(tokens), rows_at_a_time):
        part = tokens[first : first + rows_at_a_time]
        here = ((row >= first) & (row < first + len(part))).nonzero().flatten()
        if not len(here):
            continue
        stored = _stored(crosscoder, sources.harvest(part).flatten(0, 1))
        for chosen in here.split(at_once):
            start = windows.start[chosen] - first * n_positions
            found = _shares(crosscoder, stored, start=start, length=longest, latent=latent[chosen])
            offset = torch.arange(longest)
            is_inside = offset < windows.length[chosen, None]
            shares[(first_token[chosen, None] + offset)[is_inside]] = found[is_inside]
    return shares


def _stored(crosscoder: Crosscoder, raw: Tensor) -> Tensor:
    """Activations in the space of the stored weights, on their device."""
    raw = raw.to(crosscoder.W_enc.device)
    return raw.to(crosscoder.W_enc.dtype) if crosscoder.config.is_folded else crosscoder.normalize(raw)


def _shares(crosscoder: Crosscoder, stored: Tensor, *, start: Tensor, length: int, latent: Tensor) -> Tensor:
    """Shares [place, offset, source] on `length` tokens from a start; past the end, the last token."""
    at = (start[:, None] + torch.arange(length)).clamp(max=len(stored) - 1).to(stored.device)
    x, rows = stored[at], crosscoder.W_enc[latent.to(stored.device)]
    parts = [
        torch.bmm(x[..., c], rows[:, c, None])[..., 0] for c in column_slices(crosscoder.sources).values()
    ]
    return torch.stack(parts, dim=2).float().cpu()
