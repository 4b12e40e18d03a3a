"""What a report holds, and how much of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

_AT_LEAST_ONE = ("n_top", "harvest_bytes", "chunk_bytes", "max_firings")
_NOT_NEGATIVE = ("n_tokens", "n_quantile", "n_before", "n_after", "n_lens", "n_nearest")
_LONGEST_SNIPPET = 255  # what the report's files can say


@final
@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """How much a report shows, and how much memory gathering it may take.

    Args:
        n_tokens: Held-out tokens that snippets are read on, at most, in whole rows of text; 0 needs no models
            and leaves out snippets, logit lens and steering samples.
        n_top: Places shown where a latent fires most, at most one per row of text.
        n_quantile: Places shown from equal parts of its activations.
        n_before: Tokens shown before the marked one.
        n_after: Tokens shown after it.
        n_lens: Tokens that the logit lens names at each end; 0 leaves it out.
        n_nearest: Nearest latents named; 0 leaves them out.
        steer: Latents to sample steered text with.
        annotations: CSV file with the columns `latent` and `annotation`; beside it those found in the run.
        harvest_bytes: Activations up to this size are kept for the shares; beyond it the models read the
            text twice.
        chunk_bytes: Largest temporary tensor of the steps that go through latents in chunks.
        max_firings: Most firings held at once (20 bytes each, three times that while they are sorted); fewer
            tokens are read where this many would not do.

    Raises:
        ValueError: A number out of its range, snippets longer than 255 tokens, latents to steer that are
            negative or named twice, or steering without tokens to read.
    """

    n_tokens: int = 100_000
    n_top: int = 8
    n_quantile: int = 4
    n_before: int = 16
    n_after: int = 7
    n_lens: int = 8
    n_nearest: int = 8
    steer: tuple[int, ...] = ()
    annotations: Path | None = None
    harvest_bytes: int = 2**30
    chunk_bytes: int = 2**27
    max_firings: int = 50_000_000

    def __post_init__(self) -> None:
        for names, least in ((_AT_LEAST_ONE, 1), (_NOT_NEGATIVE, 0)):
            for name in names:
                if getattr(self, name) < least:
                    raise ValueError(
                        f"ReportOptions: {name} must be at least {least}, got {getattr(self, name)}."
                    )
        if self.n_shown > _LONGEST_SNIPPET:
            raise ValueError(
                f"ReportOptions: a snippet holds at most {_LONGEST_SNIPPET} tokens, got n_before + 1 + "
                f"n_after = {self.n_shown}."
            )
        if len(set(self.steer)) < len(self.steer) or min(self.steer, default=0) < 0:
            raise ValueError(f"ReportOptions: steer must name latents once each, got {self.steer}.")
        if self.steer and not self.n_tokens:
            raise ValueError("ReportOptions: steering samples need the models; leave n_tokens above 0.")

    @property
    def n_shown(self) -> int:
        """Tokens of a whole snippet."""
        return self.n_before + 1 + self.n_after
