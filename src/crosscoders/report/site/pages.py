"""What the page of a latent shows beyond its row of the table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders.report.site.checks import check_pointers, check_range, check_shape

N_BINS = 24
TOP, QUANTILE = 0, 1
_LENGTH_LIMIT = 255


@final
@dataclass(frozen=True, kw_only=True)
class Snippets:
    """Short pieces of text around tokens on which a latent fires, those of one latent after the other.

    Args:
        ptr: Where the snippets of each latent start, and last the number of snippets.
        kind: 0 for one of the strongest places, 1 for one from a quantile of the activations.
        start: Index of its first token in the text.
        length: Tokens, 1 to 255.
        at: Which of its tokens is the marked one.
        activation: The latent's activation at the marked token.
        token_activation: The latent's activation at each token, snippet after snippet; 0 where silent.
        token_share: Each source's share of the pre-activation there, W_enc[source] . x[source].
    """

    ptr: Int[Tensor, " _latent_and_end"]
    kind: Int[Tensor, " _snippet"]
    start: Int[Tensor, " _snippet"]
    length: Int[Tensor, " _snippet"]
    at: Int[Tensor, " _snippet"]
    activation: Float[Tensor, " _snippet"]
    token_activation: Float[Tensor, " _token"]
    token_share: Float[Tensor, "_token source"]

    def __post_init__(self) -> None:
        check_shape("Snippets.kind", self.kind, (None,), is_float=False)
        n = len(self.kind)
        for name in ("start", "length", "at"):
            check_shape(f"Snippets.{name}", getattr(self, name), (n,), is_float=False)
        check_shape("Snippets.activation", self.activation, (n,), is_float=True)
        check_range("Snippets.kind", self.kind, TOP, QUANTILE)
        check_range("Snippets.start", self.start, 0, 2**32 - 1)
        check_range("Snippets.length", self.length, 1, _LENGTH_LIMIT)
        if not bool(((self.at >= 0) & (self.at < self.length)).all()):
            raise ValueError("Snippets.at: the marked token should be one of the snippet's own tokens.")
        check_shape("Snippets.ptr", self.ptr, (None,), is_float=False)
        check_pointers("Snippets.ptr", self.ptr, end=n)
        self._check_tokens(int(self.length.sum()))

    def _check_tokens(self, n_tokens: int) -> None:
        check_shape("Snippets.token_activation", self.token_activation, (n_tokens,), is_float=True)
        check_shape("Snippets.token_share", self.token_share, (n_tokens, None), is_float=True)
        if not bool(((self.token_activation >= 0) & self.token_activation.isfinite()).all()):
            raise ValueError("Snippets.token_activation: expected finite numbers of at least 0.")
        if not bool(self.token_share.isfinite().all()):
            raise ValueError("Snippets.token_share: expected finite numbers.")


@final
@dataclass(frozen=True, kw_only=True)
class LatentEvidence:
    """The numbers behind each latent's verdict and category.

    Args:
        reason: The verdict in words; None where there is no verdict. One entry per latent.
        columns: Names of the numbers, those of verdicts.csv.
        values: The numbers; NaN where undefined.
        enrichment_columns: Names of the numbers behind the category.
        enrichment: These numbers; NaN where undefined.
    """

    reason: Sequence[str | None]
    columns: Sequence[str] = ()
    values: Float[Tensor, "latent _column"] | None = None
    enrichment_columns: Sequence[str] = ()
    enrichment: Float[Tensor, "latent _enrichment"] | None = None

    def __post_init__(self) -> None:
        if not all(reason is None or isinstance(reason, str) for reason in self.reason):
            raise ValueError("LatentEvidence.reason: expected one string or None per latent.")
        n = len(self.reason)
        for name, columns in (("values", self.columns), ("enrichment", self.enrichment_columns)):
            values = getattr(self, name)
            if values is not None:
                check_shape(f"LatentEvidence.{name}", values, (n, len(columns)), is_float=True)
            elif columns:
                raise ValueError(f"LatentEvidence.{name}: missing, though it has columns {list(columns)}.")


@final
@dataclass(frozen=True, kw_only=True)
class LatentPages:
    """Everything that the latents' own pages show; None for what could not be had.

    Args:
        sources: Names of the sources, in the crosscoder's order.
        evidence: What the verdicts rest on; says how many latents there are.
        snippets: Where each latent fires.
        histogram: Counts of its activations above 0 in 24 equal bins from 0 to `max_activation`.
        max_activation: Its largest activation on the text that was read; 0 or NaN where it never fired.
        lens_top: The strings (of `TokenText`) whose logit its decoder direction raises most in each model.
        lens_top_value: By how much per unit of activation, the mean over the vocabulary taken off; NaN where
            undefined.
        lens_bottom: Those that it lowers most.
        lens_bottom_value: By how much.
        nearest: The latents whose decoder rows are nearest, the nearest first.
        nearest_cosine: Cosine of whole decoder rows in normalized space; NaN where undefined.
        steering: By latent, samples of steered text: mappings with `prompt`, `strength`, `text` and `kind`
            ("latent", "random" or "none").
    """

    sources: Sequence[str]
    evidence: LatentEvidence
    snippets: Snippets | None = None
    histogram: Int[Tensor, "latent _bin"] | None = None
    max_activation: Float[Tensor, " latent"] | None = None
    lens_top: Int[Tensor, "latent source _rank"] | None = None
    lens_top_value: Float[Tensor, "latent source _rank"] | None = None
    lens_bottom: Int[Tensor, "latent source _rank"] | None = None
    lens_bottom_value: Float[Tensor, "latent source _rank"] | None = None
    nearest: Int[Tensor, "latent _rank"] | None = None
    nearest_cosine: Float[Tensor, "latent _rank"] | None = None
    steering: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        return len(self.evidence.reason)

    def __post_init__(self) -> None:
        if not self.sources or len(set(self.sources)) != len(self.sources):
            raise ValueError(f"LatentPages.sources: expected distinct names, got {list(self.sources)}.")
        self._check_pairs()
        self._check_firing()
        if self.nearest is not None:
            check_range("LatentPages.nearest", self.nearest, 0, self.n_latents - 1)
        check_range("LatentPages.steering", torch.tensor(list(self.steering)), 0, self.n_latents - 1)

    def _check_pairs(self) -> None:
        """Indices and their numbers have one shape; the last axis, how many are named, is free."""
        n = self.n_latents
        axes = {"lens_top": (n, len(self.sources)), "lens_bottom": (n, len(self.sources)), "nearest": (n,)}
        for name, shape in axes.items():
            numbers = "nearest_cosine" if name == "nearest" else f"{name}_value"
            indices, values = getattr(self, name), getattr(self, numbers)
            if (indices is None) != (values is None):
                raise ValueError(f"LatentPages: {name} and {numbers} come together or not at all.")
            if indices is not None:
                check_shape(f"LatentPages.{name}", indices, (*shape, None), is_float=False)
                check_shape(f"LatentPages.{numbers}", values, tuple(indices.shape), is_float=True)
                check_range(f"LatentPages.{name}", indices, 0, 2**32 - 1)

    def _check_firing(self) -> None:
        n = self.n_latents
        needs_maximum = self.snippets is not None or self.histogram is not None
        if needs_maximum or self.max_activation is not None:
            check_shape("LatentPages.max_activation", self.max_activation, (n,), is_float=True)
        if self.histogram is not None:
            check_shape("LatentPages.histogram", self.histogram, (n, N_BINS), is_float=False)
            check_range("LatentPages.histogram", self.histogram, 0, 2**32 - 1)
        if self.snippets is not None:
            check_shape("Snippets.ptr", self.snippets.ptr, (n + 1,), is_float=False)
            share = self.snippets.token_share
            check_shape("Snippets.token_share", share, (len(share), len(self.sources)), is_float=True)
