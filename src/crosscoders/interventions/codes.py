"""Where a latent's activation comes from while one source's model runs under an intervention."""

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.harvest import ModelSources
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.models.base import LanguageModel
from crosscoders.models.follow import Follower
from crosscoders.models.hooks import evaluation_mode
from crosscoders.models.trace import TokenTrace
from crosscoders.sources import Source, column_slices

Codes = Literal["lockstep", "swap", "own"]


class CodeReader:
    """Latents of the tokens that one source's model is reading, from its clean activation at the hook.

    The crosscoder wants every source's activation x_t, and only that of the source s at hand is there.
    "lockstep": the models of all other sources run on the same tokens, unsteered, each with its own KV cache.
    "swap": x_s in every slot, in normalized space (x_t scale_t = x_s scale_s). "own": nothing in the other
    slots, so that only W_enc[s] and the bias count. The crosscoder is read in evaluation mode, without
    gradient.

    Args:
        crosscoder: The crosscoder.
        source: The source whose model is edited.
        codes: One of the three.
        sources: The models; required by, and only read for, "lockstep".

    Raises:
        ValueError: "swap" between sources of unequal widths, or "lockstep" without these sources' models.
    """

    @typed
    def __init__(
        self, crosscoder: Crosscoder, source: Source, *, codes: Codes, sources: ModelSources | None
    ) -> None:
        self.crosscoder = crosscoder
        self.source = source
        self.codes = codes
        self.sources = sources if codes == "lockstep" else None
        if codes == "swap":
            check_equal_widths(crosscoder)
        if codes == "lockstep":
            _check_models(crosscoder, sources)
        self._trace: TokenTrace | None = None
        self._followers: list[tuple[list[Source], Follower]] = []

    @property
    def key(self) -> tuple[int, str, str, int]:
        """Readers of equal keys read the same, so that hooks at one place share the first."""
        return id(self.crosscoder), self.source.name, self.codes, id(self.sources)

    @contextmanager
    def on(self, target: LanguageModel) -> Iterator[None]:
        """Follow the model that is edited, with every other source's model, while the block runs.

        Args:
            target: The model that is edited.

        Raises:
            ValueError: It is the model of another source, or a bridge that is also to be read unedited.
        """
        if self.sources is None:
            yield
            return
        groups = _other_models(self.sources, self.source, target)
        with ExitStack() as stack:
            self._trace = stack.enter_context(target.trace_tokens())
            self._followers = [(group, self._follower(model, group)) for model, group in groups]
            for _, follower in self._followers:
                stack.enter_context(self._trace.rows_selected(follower.select_rows))
            try:
                yield
            finally:
                self._trace, self._followers = None, []

    def _follower(self, model: LanguageModel, group: list[Source]) -> Follower:
        assert self.sources is not None  # `on` asks only in lockstep
        read_as = functools.partial(self.sources.tokens_for, group[0].name)
        return Follower(model, list(dict.fromkeys(s.hook_name for s in group)), read_as=read_as)

    @torch.no_grad()
    def latents(self, activation: Tensor) -> Tensor | SparseLatents:
        """Latents of every token [batch * pos, latent], dense or sparse.

        Args:
            activation: [batch pos d_model] raw activation of the source, before any edit.
        """
        columns = self._columns(activation.detach())
        x_raw = torch.cat([columns[s.name].flatten(0, 1) for s in self.crosscoder.sources], dim=1)
        with evaluation_mode(self.crosscoder):
            return self.crosscoder.encode(x_raw)

    @torch.no_grad()
    def reconstruction(self, latents: Tensor | SparseLatents) -> Tensor:
        """The source's part of the raw reconstruction [batch * pos, d_model].

        Args:
            latents: What `latents` gave.
        """
        columns = column_slices(self.crosscoder.sources)[self.source.name]
        return self.crosscoder.decode(latents)[:, columns]

    def _columns(self, activation: Tensor) -> dict[str, Tensor]:
        """Raw activation of each source, as far as this way of reading knows it."""
        weight = self.crosscoder.W_enc
        own = activation.to(device=weight.device, dtype=weight.dtype)
        if self.codes == "swap":
            return {s.name: own * (self.source.scale / s.scale) for s in self.crosscoder.sources}
        columns = {
            s.name: own if s.name == self.source.name else own.new_zeros(*own.shape[:2], s.d_model)
            for s in self.crosscoder.sources
        }
        for group, follower in self._followers:
            assert self._trace is not None  # `on` sets both
            read = follower.read(self._trace)
            columns |= {s.name: read[s.hook_name].to(device=own.device, dtype=own.dtype) for s in group}
        return columns


def latent_columns(latents: Tensor | SparseLatents, chosen: Tensor) -> Tensor:
    """Activations of some latents; of sparse ones only the stored entries are looked at.

    Args:
        latents: Dense [row latent], or sparse.
        chosen: Indices of the latents, each once, on the same device.

    Returns:
        [row chosen], zero where a latent is not stored.
    """
    if not isinstance(latents, SparseLatents):
        return latents[:, chosen]
    n_slots = len(chosen) + 1  # the last one takes every latent that was not asked for
    slots = torch.full((latents.n_latents,), len(chosen), device=chosen.device)
    slots[chosen] = torch.arange(len(chosen), device=chosen.device)
    at = latents.rows() * n_slots + slots[latents.indices]
    found = latents.values.new_zeros(latents.n_rows * n_slots).index_add(0, at, latents.values)
    return found.view(latents.n_rows, n_slots)[:, :-1]


@typed
def check_equal_widths(crosscoder: Crosscoder) -> None:
    """Check that one source's activation fits into every slot, as `codes="swap"` wants it.

    Args:
        crosscoder: The crosscoder.

    Raises:
        ValueError: Its sources differ in width.
    """
    widths = {source.name: source.d_model for source in crosscoder.sources}
    if len(set(widths.values())) > 1:
        raise ValueError(
            f'codes="swap" puts one activation into every slot, but the widths differ: {widths}; '
            'take "lockstep" or "own".'
        )


def _check_models(crosscoder: Crosscoder, sources: ModelSources | None) -> None:
    expected = {s.name: (s.hook_name, s.d_model) for s in crosscoder.sources}
    if sources is None:
        raise ValueError(
            'codes="lockstep" reads every source\'s model, and this edit needs codes; pass '
            f'sources=load_sources(...) with {sorted(expected)}, or say codes="swap" or "own".'
        )
    got = {s.name: (s.hook_name, s.d_model) for s in sources.sources}
    if got != expected:
        raise ValueError(
            f'codes="lockstep": the crosscoder reads {expected} (hook, width), but the models are {got}.'
        )


def _other_models(
    sources: ModelSources, source: Source, target: LanguageModel
) -> list[tuple[LanguageModel, list[Source]]]:
    """Every other source by its model and what it reads; a model that serves several sources comes once."""
    groups: dict[tuple[int, str], tuple[LanguageModel, list[Source]]] = {}
    rules = () if sources.id_policy is None else sources.id_policy.rules
    replaced_for = {rule.source for rule in rules if rule.action == "replace"}
    is_own = sources.models[source.name].causal_lm is target.causal_lm
    for other in sources.sources:
        model = sources.models[other.name]
        if other.name == source.name:
            continue
        if model.causal_lm is target.causal_lm and not is_own:
            raise ValueError(
                f"the hook edits source {source.name!r}, but {target.name!r} is the model of {other.name!r}."
            )
        if model.causal_lm is target.causal_lm and model.hf_model is None:
            raise ValueError(
                f'codes="lockstep": {target.name!r} is edited and is to be read unedited for source '
                f"{other.name!r}; give load_sources the Hugging Face model instead of one bridge for both."
            )
        reads_as = other.name if other.name in replaced_for else ""
        groups.setdefault((id(model.causal_lm), reads_as), (model, []))[1].append(other)
    return list(groups.values())
