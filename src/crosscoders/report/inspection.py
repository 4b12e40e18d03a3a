"""Which latents are active on each token of a text, as plain text and as a notebook view."""

import html
from dataclasses import dataclass
from typing import Any

import torch

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.harvest import ModelSources
from crosscoders.latents import nonzero_latents
from crosscoders.reasoning.visible import visible
from crosscoders.sources import column_slices


@dataclass(frozen=True, kw_only=True)
class ActiveLatent:
    """One latent on one token.

    Args:
        latent: Its number.
        activation: Its activation there.
        shares: What each source puts into its pre-activation, `W_enc[source] . x[source]`, by source name;
            the bias is nobody's, so they need not add up to the activation.
    """

    latent: int
    activation: float
    shares: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A text with its active latents: `print` it, or leave it as a notebook cell's last line.

    Args:
        tokens: Text of each token, control characters as escapes.
        active: Latents of each token, the strongest first.
        l0: Number of active latents of each token, those not shown included.
    """

    tokens: tuple[str, ...]
    active: tuple[tuple[ActiveLatent, ...], ...]
    l0: tuple[int, ...]

    def __str__(self) -> str:
        width = max((len(token) for token in self.tokens), default=0)
        lines = []
        for token, active, n in zip(self.tokens, self.active, self.l0, strict=True):
            shown = "  ".join(f"{a.latent}:{a.activation:.2f} ({_shares(a)})" for a in active)
            lines.append(f"{token:>{width}} |{n:4d} | {shown}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """One table row per token; every piece of text is escaped."""
        head = "".join(f"<th>{name}</th>" for name in ("", "token", "active", "strongest latents"))
        rows = []
        for at, (token, active, n) in enumerate(zip(self.tokens, self.active, self.l0, strict=True)):
            cells = " ".join(
                f'<span title="{html.escape(_shares(a))}"><b>{a.latent}</b>&nbsp;{a.activation:.2f}</span>'
                for a in active
            )
            rows.append(
                f"<tr><td>{at}</td><td><code>{html.escape(token)}</code></td><td>{n}</td><td>{cells}</td></tr>"
            )
        note = "latent number and activation; hover for each source's share of the pre-activation"
        return f"<table><caption>{note}</caption><tr>{head}</tr>{''.join(rows)}</table>"


def _shares(active: ActiveLatent) -> str:
    return ", ".join(f"{name} {share:+.2f}" for name, share in active.shares.items())


@typed
def inspect_text(
    crosscoder: Crosscoder, sources: ModelSources, *, text: str, n_latents: int = 6, tokenizer: Any = None
) -> Inspection:
    """The active latents on every token of a text.

    Args:
        crosscoder: Used in evaluation mode and left in the mode it had.
        sources: Its models; the text is cut to nothing: it must fit their context.
        text: The text to read.
        n_latents: Latents shown per token.
        tokenizer: Tokenizer to use; None takes the sources' own.

    Returns:
        The inspection.

    Raises:
        ValueError: No tokenizer, an empty text, or `n_latents` below 1.
    """
    tokenizer = sources.tokenizer if tokenizer is None else tokenizer
    if tokenizer is None:
        raise ValueError("inspect_text: the sources have no tokenizer; pass tokenizer=.")
    if n_latents < 1:
        raise ValueError(f"inspect_text: n_latents must be at least 1, got {n_latents}.")
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise ValueError(f"inspect_text: the text {text!r} has no tokens.")
    was_training = crosscoder.training
    crosscoder.eval()
    try:
        with torch.no_grad():
            rows = sources.harvest(torch.tensor([ids]))[0]
            at, latents, values = nonzero_latents(crosscoder.encode(rows))
            stored = rows if crosscoder.config.is_folded else crosscoder.normalize(rows)
    finally:
        crosscoder.train(was_training)
    shares = {
        name: (crosscoder.W_enc.detach()[latents, columns] * stored[at, columns]).sum(dim=1).tolist()
        for name, columns in column_slices(crosscoder.sources).items()
    }
    found: list[list[ActiveLatent]] = [[] for _ in ids]
    for entry, (token, latent, value) in enumerate(
        zip(at.tolist(), latents.tolist(), values.tolist(), strict=True)
    ):
        part = {name: share[entry] for name, share in shares.items()}
        found[token].append(ActiveLatent(latent=latent, activation=value, shares=part))
    strongest = [sorted(group, key=lambda a: -a.activation)[:n_latents] for group in found]
    return Inspection(
        tokens=tuple(visible(tokenizer.decode([index])) for index in ids),
        active=tuple(tuple(group) for group in strongest),
        l0=tuple(len(group) for group in found),
    )
