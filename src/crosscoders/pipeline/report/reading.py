"""What the models are needed for: where latents fire on held-out text, and what their directions say."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.harvest import ModelSources
from crosscoders.latents import LatentTable
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus
from crosscoders.pipeline.report.firings import Firings, read_firings
from crosscoders.pipeline.report.lens import Lens, logit_lens
from crosscoders.pipeline.report.names import name_tokens
from crosscoders.pipeline.report.options import ReportOptions
from crosscoders.pipeline.report.places import choose_places
from crosscoders.pipeline.report.rows import choose_rows
from crosscoders.pipeline.report.shares import KeptHarvest, source_shares
from crosscoders.pipeline.report.windows import windows_around
from crosscoders.report.site.columns import SEPARATOR
from crosscoders.report.site.pages import QUANTILE, TOP, Snippets
from crosscoders.report.site.text import TokenText
from crosscoders.row_stream import excluded_ids

_MOST_COMMON = 3


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What came of one pass over held-out text.

    Args:
        text: The text, and every token that is shown.
        snippets: Where each latent fires.
        firings: All firings.
        lens: The logit lens, its tokens as indices of the text's strings; None if no model has one.
        fires_on: The most common tokens of each latent's top places, with `SEPARATOR` in between.
        notes: How much was read, and what is missing and why, a sentence each.
    """

    text: TokenText
    snippets: Snippets
    firings: Firings
    lens: Lens | None
    fires_on: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The rows of text that are read."""

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    note: str


@typed
def read_text(
    crosscoder: Crosscoder,
    sources: ModelSources,
    corpus: Corpus,
    config: RunConfig,
    *,
    latents: LatentTable,
    options: ReportOptions,
    say: Callable[[str], None],
) -> Reading:
    """Run the models over some held-out text and gather what the latents' pages show of it.

    Memory: 4 bytes per pre-activation of a batch, which is at most `chunk_bytes` or one row of text; 20 bytes
    per firing and 60 while they are sorted, `max_firings` at most; activations up to `harvest_bytes`; per
    token of a snippet 4 bytes and 4 per source.

    Args:
        crosscoder: The run's crosscoder.
        sources: Its models; the logit lens needs them whole.
        corpus: The run's held-out text.
        config: Says which positions count, and how many rows the models read together.
        latents: The run's table, from which the number of firings is known beforehand.
        options: How much is read and shown.
        say: Gets a line as each part begins.

    Raises:
        ValueError: The models came without a tokenizer, or no row of text fits into `options.n_tokens`.
    """
    if sources.tokenizer is None:
        raise ValueError("report: the models came without a tokenizer; pass one to load_sources.")
    rows = _chosen_rows(sources, corpus, config, latents=latents, options=options)
    say(f"Reading {int(rows.mask.sum()):,} held-out tokens ...")
    at_once = _rows_at_once(crosscoder, rows.tokens, config, options)
    kept = KeptHarvest(sources, n_tokens=rows.tokens.numel(), max_bytes=options.harvest_bytes)
    firings = read_firings(crosscoder, kept, rows.tokens, mask=rows.mask, rows_at_a_time=at_once)
    end = sources.tokenizer.eos_token_id
    snippets = _snippets(crosscoder, kept, rows, firings, at_once=at_once, options=options, end_of_text=end)
    lens, lens_notes = None, ()
    if options.n_lens:
        say("Looking through the logit lens ...")
        lens, lens_notes = logit_lens(crosscoder, sources, n=options.n_lens, max_bytes=options.chunk_bytes)
    text, lens = name_tokens(rows.tokens, lens, sources)
    return Reading(
        text=text,
        snippets=snippets,
        firings=firings,
        lens=lens,
        fires_on=common_tokens(snippets, text),
        notes=(rows.note, *lens_notes),
    )


def _chosen_rows(
    sources: ModelSources, corpus: Corpus, config: RunConfig, *, latents: LatentTable, options: ReportOptions
) -> _Rows:
    never = excluded_ids(sources, corpus.exclude_token_ids)  # as in the run itself
    corpus = dataclasses.replace(corpus, exclude_token_ids=never)
    counted = corpus.counted(config.data)
    per_token = float(latents["frequency"].sum())
    at_most = int(options.max_firings / per_token) if per_token > 0 else options.n_tokens
    rows = choose_rows(counted, corpus.origin, n_tokens=min(options.n_tokens, at_most))
    tokens, mask = corpus.held_out[rows], counted[rows]
    n_read, n_counted = int(mask.sum()), int(counted.sum())
    said = (
        f"Snippets, histograms and shares were read on {n_read:,} of {n_counted:,} held-out tokens: "
        f"{len(rows):,} whole rows, spread evenly over {_kinds(corpus)}."
    )
    if n_read < n_counted:
        said += (
            " The activations there are of these tokens, shaded up to the largest of them; the table's "
            "frequency, mean and largest activation are of all."
        )
    if at_most < options.n_tokens:
        said += f" They are no more because {per_token:.0f} latents fire on a token."
    return _Rows(tokens=tokens, mask=mask, note=said)


def _kinds(corpus: Corpus) -> str:
    if len(corpus.origins) == 1:
        return "the text"
    return f"{len(corpus.origins)} kinds of text ({', '.join(corpus.origins)})"


def _rows_at_once(crosscoder: Crosscoder, tokens: Tensor, config: RunConfig, options: ReportOptions) -> int:
    """As many as the run read together, or fewer so that their pre-activations stay within the budget."""
    fitting = options.chunk_bytes // (4 * tokens.shape[1] * crosscoder.n_latents)
    return max(1, min(config.data.sequences_per_harvest, fitting))


def _snippets(
    crosscoder: Crosscoder,
    kept: KeptHarvest,
    rows: _Rows,
    firings: Firings,
    *,
    at_once: int,
    options: ReportOptions,
    end_of_text: int | None,
) -> Snippets:
    places = choose_places(firings, n_top=options.n_top, n_quantile=options.n_quantile)
    windows = windows_around(
        places.token,
        rows.tokens,
        n_before=options.n_before,
        n_after=options.n_after,
        end_of_text=end_of_text,
    )
    shares = source_shares(
        crosscoder,
        kept,
        rows.tokens,
        windows=windows,
        latent=places.latent,
        rows_at_a_time=at_once,
        max_bytes=options.chunk_bytes,
    )
    return Snippets(
        ptr=places.ptr,
        kind=torch.where(places.is_quantile, QUANTILE, TOP),
        start=windows.start,
        length=windows.length,
        at=windows.at,
        activation=firings.at(places.latent, places.token),
        token_activation=firings.at(places.latent.repeat_interleave(windows.length), windows.tokens()),
        token_share=shares,
    )


@typed
def common_tokens(snippets: Snippets, text: TokenText) -> tuple[str, ...]:
    """The tokens at each latent's top places, the most common first, of equals the stronger one.

    Joined by `SEPARATOR`; one inside a token is written as a page shows it, backslash and all.

    Args:
        snippets: Where latents fire.
        text: The text that they are cut from.
    """
    pieces = [string.replace(SEPARATOR, "\\u001f") for string in text.strings]
    marked = text.tokens[snippets.start + snippets.at].tolist()
    is_top, ptr = (snippets.kind == TOP).tolist(), snippets.ptr.tolist()
    found = []
    for first, stop in itertools.pairwise(ptr):
        counts = Counter(marked[at] for at in range(first, stop) if is_top[at])
        found.append(SEPARATOR.join(pieces[token] for token, _ in counts.most_common(_MOST_COMMON)))
    return tuple(found)
