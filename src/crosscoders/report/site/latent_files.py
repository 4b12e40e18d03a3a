"""The data of the latents' pages, cut into files of 64 latents that load on demand."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.report.site.checks import json_ready, real, unsigned
from crosscoders.report.site.pages import LatentPages, Snippets

LATENTS_PER_FILE = 64
_RATE_STEPS, _UNDEFINED_RATE = 65534, 65535
_TOLERANCE = 1e-5  # of float32 sums taken in another order

# field of LatentPages -> type in the file; "rounded" is float32 to 13 bits, which packs into half
_PER_LATENT = {
    "histogram": "u4",
    "max_activation": "f4",
    "lens_top": "u4",
    "lens_top_value": "rounded",
    "lens_bottom": "u4",
    "lens_bottom_value": "rounded",
    "nearest": "u4",
    "nearest_cosine": "rounded",
}


@typed
def latent_files(pages: LatentPages) -> Iterator[tuple[str, dict[str, Any], dict[str, np.ndarray]]]:
    """Name, JSON part and arrays of each file of 64 latents, in order.

    A token's activation is stored in steps of 1/255 of the latent's largest, and as at least one step where
    it fires; a share in steps of 1/127 of the latent's largest share on its snippets (`share_scale`); the
    numbers behind the categories, where all are between 0 and 1, in steps of 1/65534; the numbers of the
    logit lens, cosines and activations of the marked tokens to 13 significant bits.

    Args:
        pages: What the pages show.

    Raises:
        ValueError: A snippet's activation is above the latent's `max_activation`.
    """
    per_latent = _per_latent(pages)
    packed = None if pages.snippets is None else _PackedSnippets(pages.snippets, pages.max_activation)
    for index, first in enumerate(range(0, pages.n_latents, LATENTS_PER_FILE)):
        stop = min(first + LATENTS_PER_FILE, pages.n_latents)
        arrays = {name: array[first:stop] for name, array in per_latent.items()}
        if packed is not None:
            arrays = packed.between(first, stop) | arrays
        yield f"latents/{index:03d}", _content(pages, first, stop), arrays


def _per_latent(pages: LatentPages) -> dict[str, np.ndarray]:
    given = {name: getattr(pages, name) for name in _PER_LATENT}
    arrays = {name: _as_type(name, values) for name, values in given.items() if values is not None}
    evidence = pages.evidence
    if evidence.values is not None:
        arrays["evidence"] = real(evidence.values)
    if evidence.enrichment is not None:
        arrays["enrichment"] = _rates(evidence.enrichment)
    return arrays


def _as_type(name: str, values: Tensor) -> np.ndarray:
    if _PER_LATENT[name] == "u4":
        return unsigned(f"LatentPages.{name}", values, "u4")
    return _rounded(values) if _PER_LATENT[name] == "rounded" else real(values)


def _rounded(values: Tensor) -> np.ndarray:
    """Numbers to 13 significant bits, at most 2^-13 of each away; NaN and infinity as they are."""
    exact = real(values)
    bits = (exact.view("<u4") + np.uint32(1 << 10)) & np.uint32(0xFFFFF800)
    return np.where(np.isfinite(exact), bits.view("<f4"), exact)


def _rates(values: Tensor) -> np.ndarray:
    """Numbers between 0 and 1 in steps of 1/65534, 65535 where undefined; any others as float32."""
    known = ~values.isnan()
    if not bool(((values >= 0) & (values <= 1) | ~known).all()):
        return real(values)
    steps = (values.double() * _RATE_STEPS).round().where(known, _UNDEFINED_RATE)
    return unsigned("LatentEvidence.enrichment", steps.long(), "u2")


def _content(pages: LatentPages, first: int, stop: int) -> dict[str, Any]:
    content = {
        "first": first,
        "n": stop - first,
        "sources": list(pages.sources),
        "evidence": list(pages.evidence.reason[first:stop]),
        "evidence_columns": list(pages.evidence.columns),
        "enrichment_columns": list(pages.evidence.enrichment_columns),
    }
    steered = {str(at): said for at, said in sorted(pages.steering.items()) if first <= at < stop}
    return content | ({"steering": json_ready("LatentPages.steering", steered)} if steered else {})


class _PackedSnippets:
    """Snippets in the types of the files, and the part that belongs to some latents.

    Args:
        snippets: The snippets of all latents.
        max_activation: Largest activation of each latent.
    """

    def __init__(self, snippets: Snippets, max_activation: Tensor | None) -> None:
        assert max_activation is not None
        owner = _owner_of_tokens(snippets)
        self._ptr = unsigned("Snippets.ptr", snippets.ptr, "u4")
        self._token_ptr = np.concatenate([[0], snippets.length.cpu().numpy().cumsum()])
        self._per_snippet = {
            "snippet_kind": unsigned("Snippets.kind", snippets.kind, "u1"),
            "snippet_start": unsigned("Snippets.start", snippets.start, "u4"),
            "snippet_length": unsigned("Snippets.length", snippets.length, "u1"),
            "snippet_at": unsigned("Snippets.at", snippets.at, "u1"),
            "snippet_activation": _rounded(snippets.activation),
        }
        activation, share = snippets.token_activation.float().cpu(), snippets.token_share.float().cpu()
        self._activation = _activation_levels(activation, max_activation.float().cpu()[owner])
        self._share, self._share_scale = _share_levels(share, owner, len(self._ptr) - 1)

    def between(self, first: int, stop: int) -> dict[str, np.ndarray]:
        """The arrays of the latents `first` to `stop`, the last one excluded.

        Args:
            first: First latent.
            stop: The one after the last.
        """
        begin, end = int(self._ptr[first]), int(self._ptr[stop])
        tokens = slice(int(self._token_ptr[begin]), int(self._token_ptr[end]))
        return {
            "snippet_ptr": self._ptr[first : stop + 1] - self._ptr[first],
            **{name: array[begin:end] for name, array in self._per_snippet.items()},
            "token_activation": self._activation[tokens],
            "token_share": self._share[tokens],
            "share_scale": self._share_scale[first:stop],
        }


def _owner_of_tokens(snippets: Snippets) -> Tensor:
    """The latent that each token of the snippets belongs to."""
    n_latents = len(snippets.ptr) - 1
    owner = torch.repeat_interleave(torch.arange(n_latents), snippets.ptr.diff().long().cpu())
    return torch.repeat_interleave(owner, snippets.length.long().cpu())


def _activation_levels(activation: Tensor, largest: Tensor) -> np.ndarray:
    """round(255 a / largest), at least 1 where a > 0."""
    fires = activation > 0
    is_above = fires & ~(activation <= largest * (1 + _TOLERANCE))
    if bool(is_above.any()):
        at = int(is_above.nonzero()[0])
        raise ValueError(
            f"LatentPages: a snippet has activation {float(activation[at]):g} where max_activation says "
            f"{float(largest[at]):g}; both should come from the same text."
        )
    levels = (255 * (activation / largest).clamp(max=1)).round().clamp(min=1)
    return levels.where(fires, 0).to(torch.uint8).numpy()


def _share_levels(share: Tensor, owner: Tensor, n_latents: int) -> tuple[np.ndarray, np.ndarray]:
    """round(127 share / scale) and the scale, the latent's largest absolute share."""
    size = share.abs().amax(dim=1) if len(share) else share.new_zeros(0)
    scale = size.new_zeros(n_latents).scatter_reduce(0, owner, size, reduce="amax")
    divisor = scale.where(scale > 0, 1)[owner].unsqueeze(1)
    return (127 * (share / divisor)).round().to(torch.int8).numpy(), real(scale)
