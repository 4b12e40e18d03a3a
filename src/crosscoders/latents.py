"""`LatentTable`: one row per latent with every measure, filled in one pass over held-out text."""

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscoders._io import atomic_write_text
from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.kernels import SparseLatents
from crosscoders.metrics import decoder_cosine, normalized_decoder_ratio
from crosscoders.reasoning import Enrichment

_LOW, _HIGH = 0.1, 0.9  # NRN beyond which the norm screen calls a latent one source's


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Activations of some tokens in a known order, with the answers that the caller knows about them.

    Args:
        rows: Raw activations.
        token_ids: What the models read.
        origin: Index into the caller's kinds of text.
        answers: For each question one answer per token: 1 yes, 0 no, -1 not asked.
        sequence: Number of the sequence that each token comes from, where the caller knows.
    """

    rows: Float[Tensor, "batch width"]
    token_ids: Int[Tensor, " batch"]
    origin: Int[Tensor, " batch"]
    answers: Mapping[str, Int[Tensor, " batch"]] = field(default_factory=dict)
    sequence: Int[Tensor, " batch"] | None = None


@dataclass(frozen=True)
class LatentTable:
    """Columns of equal length, one entry per latent; `latent` holds each row's number in the crosscoder.

    `norm_l2/<source>` and `norm_l1/<source>` are decoder norms in normalized space; `nrn_l2`, `nrn_l1`
    (normalized space) and `nrn_l2_raw`, `nrn_l1_raw` (raw space) exist for two sources, `decoder_cosine` for
    two of equal width (all as defined in `crosscoders.metrics`); `frequency` is the share of tokens on which
    the latent fires, `mean_activation` its mean where it fires, `max_activation` its largest value;
    `auroc/<question>`, `precision/<question>`, `recall/<question>` are its enrichment
    (`crosscoders.reasoning.Enrichment`). NaN means undefined, never zero.

    Args:
        columns: Columns by name.
        n_tokens: Tokens that the table was measured on.
    """

    columns: Mapping[str, Tensor]
    n_tokens: int

    def __len__(self) -> int:
        return len(self.columns["latent"])

    def __getitem__(self, column: str) -> Tensor:
        if column not in self.columns:
            raise KeyError(f"LatentTable has no column {column!r}; it has {list(self.columns)}.")
        return self.columns[column]

    @typed
    def select(self, rows: Bool[Tensor, " latent"] | Int[Tensor, " chosen"]) -> "LatentTable":
        """Some rows as a table of their own.

        Args:
            rows: Mask over the rows, or positions in the wanted order.
        """
        return LatentTable({name: column[rows] for name, column in self.columns.items()}, self.n_tokens)

    @typed
    def sort(self, column: str, *, descending: bool = True) -> "LatentTable":
        """Rows in the order of a column; undefined entries come last.

        Args:
            column: Column to sort by.
            descending: Largest first.

        Raises:
            KeyError: No such column.
        """
        key = self[column].double()
        key = torch.where(key.isnan(), -torch.inf, key if descending else -key)
        return self.select(torch.argsort(key, descending=True, stable=True))

    @typed
    def top(self, category: str, *, n: int = 10) -> "LatentTable":
        """The latents that best tell when a clause of a category is about to start.

        Args:
            category: A name such as "self-reflection", or a whole question such as "function/deductive/So".
            n: Rows wanted.

        Returns:
            The `n` rows with the highest AUROC.

        Raises:
            KeyError: The table holds no such question.
        """
        question = category if f"auroc/{category}" in self.columns else f"onset/{category}"
        return self.sort(f"auroc/{question}").select(torch.arange(min(n, len(self))))

    @typed
    def best(self, question: str) -> int:
        """Number of the latent with the highest AUROC on a question.

        Args:
            question: A whole question such as "onset/deductive".

        Returns:
            Number of the latent in the crosscoder, not the row of this table.

        Raises:
            KeyError: No such question.
            ValueError: The question was never answered both ways, so that no latent has a score.
        """
        scores = self[f"auroc/{question}"]
        if bool(scores.isnan().all()):
            raise ValueError(
                f"LatentTable.best: question {question!r} needs tokens with both answers; it had only one."
            )
        return int(self["latent"][torch.where(scores.isnan(), -torch.inf, scores).argmax()])

    @typed
    def to_csv(self, path: str | Path) -> None:
        """Write the table as CSV (numbers with nine significant digits, undefined ones empty).

        Args:
            path: File to write; its folder must exist.
        """
        atomic_write_text(Path(path), self._csv())

    @typed
    def to_json(self, path: str | Path) -> None:
        """Write the table as JSON: `{"n_tokens": ..., "columns": {name: [...]}}` with null for undefined.

        Args:
            path: File to write; its folder must exist.
        """
        content = {
            "n_tokens": self.n_tokens,
            "columns": {name: _plain(column) for name, column in self.columns.items()},
        }
        atomic_write_text(Path(path), json.dumps(content, allow_nan=False))

    @classmethod
    @typed
    def from_json(cls, path: str | Path) -> "LatentTable":
        """Read a table that `to_json` wrote; every number comes back as it was.

        Args:
            path: The file.
        """
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        columns = {
            name: torch.tensor([float("nan") if v is None else v for v in values], dtype=torch.float64)
            for name, values in content["columns"].items()
        }
        columns["latent"] = columns["latent"].long()
        return cls(columns, content["n_tokens"])

    def _csv(self) -> str:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.columns)
        plain = [_plain(column) for column in self.columns.values()]
        writer.writerows(
            ["" if v is None else f"{v:.9g}" if isinstance(v, float) else v for v in row]
            for row in zip(*plain, strict=True)
        )
        return buffer.getvalue()

    @typed
    def summary(self) -> str:
        """What the norms screen says, in a few lines of text."""
        fired = self["frequency"] > 0
        n_fired = int(fired.sum())
        lines = [
            f"{len(self)} latents on {self.n_tokens} tokens: {n_fired} fire, {len(self) - n_fired} never do."
        ]
        if "nrn_l2" in self.columns:
            nrn = self["nrn_l2"][fired]
            lines.append(
                "NRN (L2, normalized space; 0 = first source only, 1 = second only) of the latents that fire:"
            )
            edges = (0.0, _LOW, 0.3, 0.7, _HIGH, 1.0)
            for low, high in itertools.pairwise(edges):
                n = int(((nrn >= low) & ((nrn < high) | (high == 1.0))).sum())
                lines.append(f"  {low:.1f} to {high:.1f}: {n}")
            one_sided = n_one_sided(self)
            lines.append(
                f"Latents of one source by the norm screen (NRN below {_LOW:g} or above {_HIGH:g}): "
                + (f"{one_sided}. A screen only: nothing here has been verified." if one_sided else "none.")
            )
        return "\n".join(lines)


@typed
def n_one_sided(latents: LatentTable) -> int | None:
    """Latents that fire and are one source's by the norm screen: NRN below 0.1 or above 0.9.

    Args:
        latents: The table.

    Returns:
        Their number; None for a table without NRN, which compares two sources.
    """
    if "nrn_l2" not in latents.columns:
        return None
    nrn = latents["nrn_l2"][latents["frequency"] > 0]
    return int(((nrn < _LOW) | (nrn > _HIGH)).sum())


def _plain(column: Tensor) -> list[float | int | None]:
    return [None if isinstance(value, float) and value != value else value for value in column.tolist()]


@typed
def tabulate_latents(
    crosscoder: Crosscoder, batches: Iterable[TokenBatch], *, questions: tuple[str, ...] = ()
) -> LatentTable:
    """Measure every latent in one pass.

    Args:
        crosscoder: A trained crosscoder; it is used in evaluation mode and left in the mode it had.
        batches: Held-out tokens.
        questions: Names of the questions that each batch answers.

    Returns:
        The table, in float64 on the CPU.

    Raises:
        ValueError: No tokens, or a batch without answers to the announced questions.
    """
    counter = _Counter(crosscoder, questions)
    was_training = crosscoder.training
    crosscoder.eval()
    try:
        for batch in batches:
            counter.update(batch)
    finally:
        crosscoder.train(was_training)
    return counter.table()


class _Counter:
    def __init__(self, crosscoder: Crosscoder, questions: tuple[str, ...]) -> None:
        n = crosscoder.n_latents
        self.crosscoder = crosscoder
        self.n_tokens = 0
        self.n_fired = torch.zeros(n, dtype=torch.int64)
        self.sum = torch.zeros(n, dtype=torch.float64)
        self.max = torch.zeros(n, dtype=torch.float64)
        self.enrichment = Enrichment(n, questions)

    @torch.no_grad()
    def update(self, batch: TokenBatch) -> None:
        rows, indices, values = nonzero_latents(self.crosscoder.encode(batch.rows))
        self.n_tokens += batch.rows.shape[0]
        self.n_fired += torch.bincount(indices, minlength=self.crosscoder.n_latents)
        self.sum.index_add_(0, indices, values.double())
        self.max.scatter_reduce_(0, indices, values.double(), reduce="amax")
        if self.enrichment.questions:
            answers = {
                name: batch.answers[name] for name in self.enrichment.questions if name in batch.answers
            }
            self.enrichment.update(rows, indices, values.float(), answers=answers)

    def table(self) -> LatentTable:
        if self.n_tokens == 0:
            raise ValueError(
                "tabulate_latents: got no tokens; pass at least one batch of held-out activations."
            )
        columns: dict[str, Tensor] = {"latent": torch.arange(self.crosscoder.n_latents)}
        columns |= dict(_geometry(self.crosscoder))
        columns["frequency"] = self.n_fired.double() / self.n_tokens
        columns["mean_activation"] = self.sum / self.n_fired
        columns["max_activation"] = self.max
        for question in self.enrichment.questions:
            columns |= {
                f"{measure}/{question}": scores
                for measure, scores in self.enrichment.scores(question).items()
            }
        return LatentTable({name: column.detach().cpu() for name, column in columns.items()}, self.n_tokens)


@typed
def nonzero_latents(
    latents: Tensor | SparseLatents,
) -> tuple[Int[Tensor, " nnz"], Int[Tensor, " nnz"], Float[Tensor, " nnz"]]:
    """Token, latent and activation of every latent that fires, on the CPU.

    Args:
        latents: Dense latents [batch latent], or sparse ones.

    Returns:
        Three tensors of equal length, ordered by token.
    """
    if isinstance(latents, SparseLatents):
        rows = torch.repeat_interleave(
            torch.arange(latents.n_rows, device=latents.row_ptr.device), latents.row_ptr.diff()
        )
        return rows.cpu(), latents.indices.cpu(), latents.values.detach().cpu()
    rows, indices = latents.nonzero(as_tuple=True)
    return rows.cpu(), indices.cpu(), latents.detach()[rows, indices].cpu()


def _geometry(crosscoder: Crosscoder) -> Iterator[tuple[str, Tensor]]:
    for p in (2, 1):
        norms = crosscoder.decoder_norms(p=p).double()
        for at, source in enumerate(crosscoder.sources):
            yield f"norm_l{p}/{source.name}", norms[:, at]
        if len(crosscoder.sources) == 2:
            yield f"nrn_l{p}", normalized_decoder_ratio(norms)
            yield (
                f"nrn_l{p}_raw",
                normalized_decoder_ratio(crosscoder.decoder_norms(p=p, space="raw").double()),
            )
    if len({source.d_model for source in crosscoder.sources}) == 1 and len(crosscoder.sources) == 2:
        yield "decoder_cosine", decoder_cosine(crosscoder.W_dec.double(), crosscoder.sources)
