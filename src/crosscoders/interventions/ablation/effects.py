"""What ablating latents does to the logit of the token that comes next."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.harvest import ModelSources
from crosscoders.interventions.ablation.codes import latent_contribution, read_codes
from crosscoders.interventions.ablation.latent_sets import check_latents
from crosscoders.interventions.ablation.occurrences import OccurrenceBatch, Occurrences, occurrence_batches
from crosscoders.interventions.ablation.replay import replayed_prefix
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.models.base import LanguageModel
from crosscoders.sources import Source, check_models_read, column_slices

MEASURES = ("logit", "centered", "log_probability")


@dataclass(frozen=True, kw_only=True)
class LatentEdit:
    """How a set of latents is taken out of the residual stream of each source s.

    "error_preserving" changes only the latents' own contribution, h <- h - sum_j f_j d_j^s. "replacement"
    puts the reconstruction without them in place of the stream, h <- decode(f with the set at zero); its
    baseline is the replacement of an empty set, not the clean model.

    Args:
        latents: The set, possibly empty.
        mode: As above.
        decoder: Decoder rows in place of the latents' own (`shuffled_identity`); error-preserving only.
        norm_from: Rescale the edit of every other source, token by token, to this source's relative size:
            ||edit^s|| / ||h^s|| = ||edit^from|| / ||h^from||; error-preserving only.
        size_of: Rescale the edit in every source, token by token, to the norm that taking out these latents
            instead would have there: a control of the same size. Error-preserving only.
        sources: Sources to edit; None for all.

    Raises:
        ValueError: An unknown mode, a replacement with `decoder`, `norm_from` or `size_of`, both of the last
            two, or another number of rows than of latents.
    """

    latents: Int[Tensor, " chosen"]
    mode: Literal["error_preserving", "replacement"] = "error_preserving"
    decoder: Float[Tensor, "_ width"] | None = None
    norm_from: str | None = None
    size_of: Int[Tensor, " _"] | None = None
    sources: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("error_preserving", "replacement"):
            raise ValueError(
                f"LatentEdit: mode must be 'error_preserving' or 'replacement', got {self.mode!r}."
            )
        extras = (self.decoder, self.norm_from, self.size_of)
        if self.mode == "replacement" and any(extra is not None for extra in extras):
            raise ValueError(
                "LatentEdit: decoder, norm_from and size_of go with mode='error_preserving' only."
            )
        if self.norm_from is not None and self.size_of is not None:
            raise ValueError("LatentEdit: an edit takes its size by norm_from or size_of, not both.")
        if self.decoder is not None and len(self.decoder) != len(self.latents):
            raise ValueError(
                f"LatentEdit: expected one decoder row per latent, got {len(self.decoder)} rows for "
                f"{len(self.latents)} latents."
            )


@dataclass(frozen=True, kw_only=True)
class TargetScores:
    """What a model says of each target token one position before it, in float64.

    Args:
        logit: The target's logit.
        centered: That minus the mean logit of the vocabulary.
        log_probability: The target's log-probability, in nats.
    """

    logit: Float[Tensor, " chosen"]
    centered: Float[Tensor, " chosen"]
    log_probability: Float[Tensor, " chosen"]

    def minus(self, other: "TargetScores") -> "TargetScores":
        """The change from `other` to this, measure by measure."""
        return TargetScores(**{name: getattr(self, name) - getattr(other, name) for name in MEASURES})


@dataclass(frozen=True, kw_only=True)
class AblationEffects:
    """Scores without and with each edit; one entry per occurrence, in the order of the occurrences.

    Args:
        clean: Scores of the unedited model, by source.
        edited: Scores by edit and source.
        relative_size: ||edit|| / ||h|| where the target is read, by edit and source.
        n_unscalable: Tokens whose edit should have been rescaled but is zero while that which gives the size
            (`norm_from`, `size_of`) is not; they stay unedited. Each token of the text counts once, however
            many occurrences it stands before. By edit and source.
    """

    clean: Mapping[str, TargetScores]
    edited: Mapping[str, Mapping[str, TargetScores]]
    relative_size: Mapping[str, Mapping[str, Float[Tensor, " chosen"]]]
    n_unscalable: Mapping[str, Mapping[str, int]]

    @typed
    def change(self, edit: str, source: str, *, baseline: str | None = None) -> TargetScores:
        """Scores with an edit minus those without.

        Args:
            edit: Name of the edit.
            source: Name of the source.
            baseline: Name of the edit to compare with; None for the unedited model.

        Returns:
            One difference per occurrence, in logits and nats.

        Raises:
            KeyError: No such edit of this source.
        """
        before = self.clean[source] if baseline is None else self.edited[baseline][source]
        return self.edited[edit][source].minus(before)


@torch.no_grad()
@typed
def ablation_effects(
    crosscoder: Crosscoder,
    sources: ModelSources,
    tokens: Int[Tensor, "held_out pos"],
    occurrences: Occurrences,
    edits: Mapping[str, LatentEdit],
    *,
    positions: Literal["all", "target"] = "all",
    where: Bool[Tensor, "held_out pos"] | None = None,
    batch_size: int = 32,
) -> AblationEffects:
    """Ablate sets of latents in every source's model and read the target tokens' logits, teacher-forced.

    Codes are read once, from all sources' clean activations, and every edit uses them. Each model then runs
    on the text before the target with its residual stream edited, and is read one position before it.

    Args:
        crosscoder: Used in evaluation mode.
        sources: The models, in the order of the crosscoder's sources.
        tokens: The text; only rows with occurrences run, cut before the target.
        occurrences: Targets in it.
        edits: What to do, by name.
        positions: Edit at every position before the target, or only where it is read.
        where: Positions that may be edited; leave special tokens out, on which no crosscoder was trained.
            None is everywhere.
        batch_size: Occurrences that run together; a batch's logits at all positions are held in memory.

    Returns:
        Scores per occurrence, edit and source, and the size of each edit.

    Raises:
        ValueError: No occurrences, sources other than the crosscoder's, or a latent or source that does not
            exist.

    Example:
        chosen = choose_occurrences(tokens == wait, n=100, generator=torch.Generator().manual_seed(0))
        edits = {"ablated": LatentEdit(latents=torch.tensor([14, 32]))}
        effects = ablation_effects(crosscoder, sources, tokens, chosen, edits)
        print(effects.change("ablated", "distilled").logit.mean())
    """
    if len(occurrences) == 0:
        raise ValueError("ablation_effects: got no occurrences; see choose_occurrences.")
    check_models_read(crosscoder.sources, sources.sources, where="ablation_effects")
    for name, edit in edits.items():
        _check_edit(crosscoder, edit, name=name)
    found = _Found(crosscoder.sources, edits, n=len(occurrences))
    for batch in occurrence_batches(tokens, occurrences, batch_size=batch_size):
        is_edited = _edited_positions(batch, positions=positions, where=where)
        reading = _Reading(crosscoder, sources.harvest(batch.tokens), is_edited)
        places = is_edited.nonzero()
        found.places = batch.rows[places[:, 0]] * tokens.shape[1] + places[:, 1]
        for source in sources.sources:
            read = dataclasses.replace(batch, tokens=sources.tokens_for(source.name, batch.tokens))
            _run_source(reading, sources.models[source.name], source, batch=read, edits=edits, found=found)
    return found.effects()


def _check_edit(crosscoder: Crosscoder, edit: LatentEdit, *, name: str) -> None:
    check_latents(f"ablation_effects: edit {name!r}", edit.latents, n_latents=crosscoder.n_latents)
    known = [source.name for source in crosscoder.sources]
    if edit.size_of is not None:
        where = f"ablation_effects: size_of of edit {name!r}"
        check_latents(where, edit.size_of, n_latents=crosscoder.n_latents)
    named = [*(edit.sources or ()), *([] if edit.norm_from is None else [edit.norm_from])]
    unknown = sorted(set(named) - set(known))
    if unknown:
        raise ValueError(f"ablation_effects: edit {name!r} names {unknown}; the sources are {known}.")
    if edit.decoder is not None and edit.decoder.shape[1] != crosscoder.width:
        raise ValueError(
            f"ablation_effects: the decoder rows of edit {name!r} have width {edit.decoder.shape[1]}, "
            f"but the crosscoder's have {crosscoder.width}."
        )


def _edited_positions(batch: OccurrenceBatch, *, positions: str, where: Tensor | None) -> Tensor:
    at = torch.arange(batch.tokens.shape[1])
    chosen = at <= batch.read[:, None] if positions == "all" else at == batch.read[:, None]
    return chosen if where is None else chosen & where[batch.rows, : batch.tokens.shape[1]]


class _Reading:
    """Clean activations and codes of the positions of a batch that are edited."""

    def __init__(self, crosscoder: Crosscoder, activations: Tensor, is_edited: Tensor) -> None:
        self.crosscoder = crosscoder
        self.is_edited = is_edited.to(activations.device)
        self.columns = column_slices(crosscoder.sources)
        self.x_raw = activations[self.is_edited].to(crosscoder.W_enc.device)
        self.codes: SparseLatents | None = None
        if len(self.x_raw):
            self.codes = read_codes(crosscoder, self.x_raw)

    def delta(self, edit: LatentEdit, source: Source) -> tuple[Tensor, Tensor | None]:
        """What an edit adds to the source's stream at each edited position; where it cannot be rescaled."""
        columns = self.columns[source.name]
        if self.codes is None:
            return self.x_raw[:, columns], None
        lost = latent_contribution(self.crosscoder, self.codes, edit.latents, decoder=edit.decoder)
        if edit.mode == "replacement":
            return (self.crosscoder.decode(self.codes) - lost - self.x_raw)[:, columns], None
        if edit.size_of is not None:
            given = latent_contribution(self.crosscoder, self.codes, edit.size_of)
            return _rescaled(lost[:, columns], given[:, columns].norm(dim=1))
        if edit.norm_from is None or edit.norm_from == source.name:
            return -lost[:, columns], None
        other = self.columns[edit.norm_from]
        relative = lost[:, other].norm(dim=1) / self.x_raw[:, other].norm(dim=1)
        return _rescaled(lost[:, columns], relative * self.x_raw[:, columns].norm(dim=1))

    def relative_size(self, delta: Tensor, source: Source, read: Tensor) -> Tensor:
        """||delta|| / ||h|| at the position where each row is read; 0 where that is not edited."""
        size = torch.zeros(self.is_edited.shape, dtype=torch.float64)
        norms = delta.norm(dim=1).double() / self.x_raw[:, self.columns[source.name]].norm(dim=1).double()
        size[self.is_edited.cpu()] = norms.cpu()
        return size[torch.arange(len(read)), read]


def _rescaled(lost: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    norm = lost.norm(dim=1)
    factor = torch.where(norm > 0, wanted / norm, 0.0)
    return -lost * factor[:, None], (norm == 0) & (wanted > 0)


class _Found:
    """Scores as they come in, batch by batch; `places` numbers the edited tokens of the batch in the text."""

    def __init__(self, sources: tuple[Source, ...], edits: Mapping[str, LatentEdit], *, n: int) -> None:
        self.clean = {source.name: _empty_scores(n) for source in sources}
        self.edited: dict[str, dict[str, TargetScores]] = {}
        self.relative_size: dict[str, dict[str, Tensor]] = {}
        self.unscalable: dict[str, dict[str, set[int]]] = {}
        self.places = torch.zeros(0, dtype=torch.int64)
        for name, edit in edits.items():
            names = [s.name for s in sources if edit.sources is None or s.name in edit.sources]
            self.edited[name] = {source: _empty_scores(n) for source in names}
            self.relative_size[name] = {s: torch.full((n,), torch.nan, dtype=torch.float64) for s in names}
            self.unscalable[name] = {source: set() for source in names}

    def effects(self) -> AblationEffects:
        return AblationEffects(
            clean=self.clean,
            edited=self.edited,
            relative_size=self.relative_size,
            n_unscalable={
                name: {source: len(places) for source, places in by_source.items()}
                for name, by_source in self.unscalable.items()
            },
        )


def _empty_scores(n: int) -> TargetScores:
    return TargetScores(**{name: torch.full((n,), torch.nan, dtype=torch.float64) for name in MEASURES})


def _put_scores(scores: TargetScores, batch: OccurrenceBatch, logits: Tensor) -> None:
    read = logits[torch.arange(len(batch.read)), batch.read.to(logits.device)].double().cpu()
    target = read.gather(1, batch.targets[:, None])[:, 0]
    scores.logit[batch.which] = target
    scores.centered[batch.which] = target - read.mean(dim=1)
    scores.log_probability[batch.which] = target - read.logsumexp(dim=1)


def _run_source(
    reading: _Reading,
    model: LanguageModel,
    source: Source,
    *,
    batch: OccurrenceBatch,
    edits: Mapping[str, LatentEdit],
    found: _Found,
) -> None:
    with replayed_prefix(model, batch.tokens, hook_name=source.hook_name) as logits:
        _put_scores(found.clean[source.name], batch, logits)
        for name, edit in edits.items():
            if source.name not in found.edited[name]:
                continue
            delta, is_unscalable = reading.delta(edit, source)
            _put_scores(
                found.edited[name][source.name], batch, _edited_logits(model, source, batch, reading, delta)
            )
            size = reading.relative_size(delta, source, batch.read)
            found.relative_size[name][source.name][batch.which] = size
            if is_unscalable is not None:
                found.unscalable[name][source.name].update(found.places[is_unscalable.cpu()].tolist())


def _edited_logits(
    model: LanguageModel, source: Source, batch: OccurrenceBatch, reading: _Reading, delta: Tensor
) -> Tensor:
    def change(stream: Tensor) -> Tensor:
        edited = stream.clone()
        at = reading.is_edited.to(stream.device)
        edited[at] = (stream[at] + delta.to(stream.device)).to(stream.dtype)  # adds in the wider dtype
        return edited

    with model.edit(source.hook_name, change):
        return model.logits(batch.tokens)
