"""A report of made-up latents: any size, fast, and hostile wherever text can be."""

import struct
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosscoders.report.site.columns import Column
from crosscoders.report.site.pages import N_BINS, LatentEvidence, LatentPages, Snippets
from crosscoders.report.site.text import TokenText
from crosscoders.report.site.writer import Site
from tests.report.hostile_text import HOSTILE
from tests.report.synthetic_overview import synthetic_experiments, synthetic_overview

N_TOP, N_QUANTILE, LENGTH, N_RANKS = 8, 4, 24, 8
ROW = 250  # tokens in a row of text; not a multiple of a snippet, so some are cut
VERDICTS = (
    "model-specific",
    "re-used",
    "rotated",
    "re-scaled",
    "shared",
    "artifact (shrinkage)",
    "undecided",
)
CATEGORIES = ("self-reflection", "deductive", "alternative", "contrastive")
EVIDENCE = tuple(
    "n_firings n_sequences mean_activation norm_share decoder_cosine stronger ratio ratio_low ratio_high "
    "kappa kappa_low kappa_high nu_error nu_reconstruction nu_reconstruction_without_bias reuse_cosine "
    "reuse_latent partner_correlation partner off_activity swap_gained swap_lost swap_readable stability "
    "stability_low stability_high".split()
)
READINGS = ("onset", "inside", "function/first", "function/second")


def synthetic_site(
    n_latents: int = 300,
    *,
    seed: int = 0,
    is_hostile: bool = True,
    n_text_tokens: int = 20_000,
    n_strings: int = 2_000,
    sources: tuple[str, ...] = ("base", "distilled"),
    figures: Path | None = None,
) -> Site:
    """A report with everything in it: plausible numbers, NaN where a run has none, hostile text everywhere.

    Latents 3, 43, 83 and so on never fire. The first strings of the text, and so its most frequent tokens,
    are the hostile ones.

    Args:
        n_latents: Rows of the table.
        seed: Of all numbers.
        is_hostile: Whether tokens, annotations, reasons and names hold what must be escaped.
        n_text_tokens: Tokens of text that the snippets are cut from.
        n_strings: Different tokens.
        sources: Names of the sources.
        figures: Folder to write two small pictures into; no figures if None.
    """
    g = torch.Generator().manual_seed(seed)
    text = _text(g, n_text_tokens, n_strings, is_hostile)
    peak = _peaks(g, n_latents)
    columns = _columns(g, peak, sources, is_hostile)
    pages = _pages(g, peak, text, sources, is_hostile)
    drawn = (
        {} if figures is None else {f"norms/{name}.png": _png(figures, name) for name in ("nrn", "cosine")}
    )
    return Site(
        overview=synthetic_overview(g, columns, sources=sources, is_hostile=is_hostile),
        columns=columns,
        text=text,
        pages=pages,
        experiments=synthetic_experiments(figures=list(drawn), is_hostile=is_hostile),
        figures=drawn,
        n_tokens=244_092,
    )


def _peaks(g: torch.Generator, n: int) -> Tensor:
    """Largest activation of each latent; 0 where it never fires."""
    peak = torch.randn(n, generator=g).mul(0.5).exp() * 3
    peak[3::40] = 0
    return peak


def _text(g: torch.Generator, n_tokens: int, n_strings: int, is_hostile: bool) -> TokenText:
    odd = list(HOSTILE)[: n_strings // 2] if is_hostile else []
    words = [f" {_word(at)}" if at % 3 else _word(at) for at in range(n_strings - len(odd))]
    tokens = (n_strings ** torch.rand(n_tokens, generator=g, dtype=torch.float64)).long() - 1  # Zipf
    starts = torch.tensor([*range(0, n_tokens, ROW), n_tokens])
    return TokenText(
        tokens=tokens.clamp(max=n_strings - 1),
        strings=odd + words,
        token_ids=torch.arange(n_strings) * 3 + 11,
        row_start=starts,
    )


def _word(at: int) -> str:
    """A word for each number, different ones for different numbers."""
    syllables = ("ka", "lo", "mi", "re", "su", "to", "ve", "na", "chi", "bra")
    return "".join(syllables[int(digit)] for digit in str(at))


def _columns(
    g: torch.Generator, peak: Tensor, sources: tuple[str, ...], is_hostile: bool
) -> tuple[Column, ...]:
    n, fires = len(peak), peak > 0

    def drawn(*, low: float = 0.0, high: float = 1.0, undefined: float = 0.0) -> Tensor:
        values = low + (high - low) * torch.rand(n, generator=g)
        values[torch.rand(n, generator=g) < undefined] = torch.nan
        return values

    def number(name: str, values: Tensor, *, group: str = "measures", is_shown: bool = False) -> Column:
        kind = "number" if values.is_floating_point() else "integer"
        said = f"{name} of a latent, made up."
        return Column(
            name=name, label=name, help=said, kind=kind, values=values, group=group, is_shown=is_shown
        )

    def words(name: str, kind: str, values: Any, choices: tuple[str, ...] = ()) -> Column:
        return Column(
            name=name, label=name, help=f"{name}, made up.", kind=kind, values=values, choices=choices,
            group="notes", is_shown=True,
        )  # fmt: skip

    verdict = torch.randint(-1, len(VERDICTS), (n,), generator=g).where(fires, -1)
    category = torch.randint(-9, len(CATEGORIES), (n,), generator=g).clamp(min=-1)
    norms = {name: torch.randn(n, generator=g).mul(0.3).exp() for name in sources}
    first, last = norms[sources[0]], norms[sources[-1]]
    frequency = (10 ** drawn(low=-5, high=-1)).where(fires, 0)
    return (
        number("latent", torch.arange(n), group="", is_shown=True),
        words("verdict", "choice", verdict, VERDICTS),
        words("category", "choice", category, CATEGORIES),
        number("category_score", drawn(undefined=0.5)),
        words("fires_on", "text", _fires_on(n, is_hostile)),
        words("annotation", "text", _annotations(n, is_hostile)),
        number("nrn_l2", last / (first + last), is_shown=True),
        number("decoder_cosine", drawn(low=-0.2), is_shown=True),
        number("frequency", frequency, is_shown=True),
        number("mean_activation", (peak / 3).where(fires, torch.nan)),
        number("max_activation", peak.where(fires, torch.nan)),
        *(number(f"norm_l2/{name}", values, group="norms") for name, values in norms.items()),
        number("nu_error", drawn(undefined=0.2)),
        number("nu_reconstruction", drawn(undefined=0.2)),
        number("ratio", drawn(undefined=0.1), is_shown=True),
        number("kappa", drawn(low=-0.1, undefined=0.1)),
        number("stability", drawn(undefined=0.3), is_shown=True),
    )


def _fires_on(n: int, is_hostile: bool) -> list[str]:
    odd = list(HOSTILE) if is_hostile else ["Wait"]
    return ["\x1f".join((odd[at % len(odd)], _word(at % 997), _word(at % 31))) for at in range(n)]


def _annotations(n: int, is_hostile: bool) -> list[str]:
    odd = list(HOSTILE) if is_hostile else ["starts a sentence that doubts"]
    return [f"note {at}: {odd[at // 7 % len(odd)]}" if at % 7 == 0 else "" for at in range(n)]


def _pages(
    g: torch.Generator, peak: Tensor, text: TokenText, sources: tuple[str, ...], is_hostile: bool
) -> LatentPages:
    n, n_sources = len(peak), len(sources)
    n_near = min(N_RANKS, n)

    def lens(sign: int) -> tuple[Tensor, Tensor]:
        shape = (n, n_sources, N_RANKS)
        ranked = torch.rand(shape, generator=g).sort(dim=2, descending=True).values
        return torch.randint(len(text.strings), shape, generator=g), sign * ranked

    top, top_value = lens(1)
    bottom, bottom_value = lens(-1)
    return LatentPages(
        sources=sources,
        evidence=_evidence(g, n, is_hostile),
        snippets=_snippets(g, peak, text, n_sources),
        histogram=_histogram(g, peak),
        max_activation=peak,
        lens_top=top,
        lens_top_value=top_value,
        lens_bottom=bottom,
        lens_bottom_value=bottom_value,
        nearest=torch.randint(n, (n, n_near), generator=g),
        nearest_cosine=torch.rand(n, n_near, generator=g).sort(dim=1, descending=True).values,
        steering=_steering(n, is_hostile),
    )


def _snippets(g: torch.Generator, peak: Tensor, text: TokenText, n_sources: int) -> Snippets:
    """Twelve a latent that fires; the marked token is the strongest of its snippet."""
    per_latent = (peak > 0) * (N_TOP + N_QUANTILE)
    ptr = torch.cat([torch.zeros(1, dtype=torch.long), per_latent.cumsum(0)])
    n = int(ptr[-1])
    kind = (torch.arange(n) % (N_TOP + N_QUANTILE) >= N_TOP).long()
    row = torch.randint(len(text.row_start) - 1, (n,), generator=g)
    begin, end = text.row_start[row], text.row_start[row + 1]
    start = begin + (torch.rand(n, generator=g) * (end - begin)).long()
    length = (end - start).clamp(max=LENGTH)
    at = (torch.rand(n, generator=g) * length).long().clamp(max=16)
    rank = torch.arange(n) % (N_TOP + N_QUANTILE)
    own = torch.repeat_interleave(peak, per_latent) * (1 - rank / (N_TOP + N_QUANTILE + 1))
    activation, share = _token_numbers(g, own, length, at, n_sources)
    return Snippets(
        ptr=ptr, kind=kind, start=start, length=length, at=at, activation=own,
        token_activation=activation, token_share=share,
    )  # fmt: skip


def _token_numbers(
    g: torch.Generator, own: Tensor, length: Tensor, at: Tensor, n_sources: int
) -> tuple[Tensor, Tensor]:
    """Activation and shares at each token: one in eight fires beside the marked one."""
    first = length.cumsum(0) - length
    largest = torch.repeat_interleave(own, length)
    n = len(largest)
    activation = largest * torch.rand(n, generator=g) * (torch.rand(n, generator=g) < 1 / 8)
    activation[first + at] = own
    noise = torch.randn(n, n_sources, generator=g) * largest.unsqueeze(1) * 0.1
    return activation, noise + activation.unsqueeze(1) / n_sources


def _histogram(g: torch.Generator, peak: Tensor) -> Tensor:
    """Counts that fall off by a fifth from bin to bin, the last bin never empty."""
    expected = 500 * torch.rand(len(peak), 1, generator=g) * 0.8 ** torch.arange(N_BINS)
    counts = torch.poisson(expected, generator=g).long()
    counts[:, -1].clamp_(min=1)
    return counts.where(peak.unsqueeze(1) > 0, 0)


def _evidence(g: torch.Generator, n: int, is_hostile: bool) -> LatentEvidence:
    odd = list(HOSTILE) if is_hostile else ["the base model has it too"]
    reasons = [
        None if at % 40 == 3 else f"both write it, ratio {at % 97 / 97:.3f}; {odd[at % len(odd)]}"
        for at in range(n)
    ]
    measures = ("precision", "recall", "auroc")
    names = [f"{m}/{where}/{category}" for category in CATEGORIES for where in READINGS for m in measures]
    values, enrichment = (torch.rand(n, len(columns), generator=g) for columns in (EVIDENCE, names))
    values[torch.rand(values.shape, generator=g) < 0.1] = torch.nan
    enrichment[torch.rand(enrichment.shape, generator=g) < 0.1] = torch.nan
    return LatentEvidence(
        reason=reasons, columns=EVIDENCE, values=values, enrichment_columns=names, enrichment=enrichment
    )


def _steering(n: int, is_hostile: bool) -> dict[int, list[dict[str, Any]]]:
    said = "".join(HOSTILE) if is_hostile else "Wait, let me check this again."
    samples = [("latent", 0.6), ("latent", -0.6), ("random", 0.6), ("none", 0.0)]
    return {
        latent: [
            {"prompt": f"2 + 2 = {said[:80]}", "strength": strength, "text": f"{kind}: {said}", "kind": kind}
            for kind, strength in samples
        ]
        for latent in (0, 70)
        if latent < n
    }


def _png(folder: Path, name: str) -> Path:
    """A picture of 64 by 40 blue points."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\x00" + b"\x00\x72\xb2" * 64) * 40
    header = struct.pack(">IIBBBBB", 64, 40, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    path = folder / f"{name}.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path
