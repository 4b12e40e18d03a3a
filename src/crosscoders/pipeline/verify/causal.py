"""The causal check of a verification: survivors, or else the groups that explain the difference."""

import torch
from torch import Tensor

from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.baselines import difference_moments, difference_of_means
from crosscoders.diffing.batches import MeasureBatch
from crosscoders.diffing.causal import CausalCheck, causal_check
from crosscoders.diffing.verdicts import RESCALED, REUSED, ROTATED, SPECIFIC, Verdicts
from crosscoders.harvest import ModelSources
from crosscoders.models.generate import generate
from crosscoders.pipeline.bundled import is_bundled
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus, training_batches
from crosscoders.pipeline.verify.options import VerifyOptions

_PROMPT_TOKENS, _ANSWER_TOKENS = 16, 112  # what the second model continues, and by how much
_MEAN_BATCHES = 8  # of training text behind the difference of means
_GROUPS_WITHOUT_SURVIVORS = (REUSED, RESCALED, ROTATED)


def check_groups(
    crosscoder: Crosscoder,
    sources: ModelSources,
    corpus: Corpus,
    config: RunConfig,
    verdicts: Verdicts,
    *,
    options: VerifyOptions,
) -> dict[str, CausalCheck]:
    """The causal check on each kind of held-out text and on what the second model writes itself.

    Args:
        crosscoder: The run's crosscoder.
        sources: Its two models, and others perhaps.
        corpus: Its text.
        config: How the text is read.
        verdicts: Say which latents are patched: the survivors, or without any those that are re-used,
            re-scaled or rotated.
        options: Tokens, controls and seed; where a group holds more than half of the live latents, so that
            no control of its size can be drawn, there are no controls.

    Returns:
        One result per kind of text; none where there is nothing to patch, no token to read, no common space
        or no whole model.
    """
    sets = _sets(verdicts)
    one_width = len({source.d_model for source in crosscoder.sources}) == 1
    second = verdicts.pair[1]
    if options.causal_tokens == 0 or not sets or not one_width or sources.models[second].is_truncated:
        return {}
    pair = sources.only(verdicts.pair)
    assert verdicts.evidence is not None
    is_live = verdicts.evidence["n_firings"] > 0
    mean = _mean_difference(pair, corpus, config)
    return {
        name: causal_check(
            crosscoder,
            pair,
            tokens=tokens,
            mask=mask,
            counted=counted,
            sets=sets,
            is_live=is_live,
            generator=torch.Generator().manual_seed(options.seed),
            mean_difference=mean,
            n_draws=options.n_controls if _can_draw(sets, is_live) else 0,
            batch_size=config.data.sequences_per_harvest,
        )
        for name, (tokens, mask, counted) in _texts(pair, second, corpus, config, options).items()
    }


def _sets(verdicts: Verdicts) -> dict[str, Tensor]:
    survivors = verdicts.latents(SPECIFIC)
    if len(survivors):
        return {"survivors": survivors}
    groups = {name: verdicts.latents(name) for name in _GROUPS_WITHOUT_SURVIVORS}
    return {name: latents for name, latents in groups.items() if len(latents)}


def _can_draw(sets: dict[str, Tensor], is_live: Tensor) -> bool:
    """Whether outside each set as many latents are live as it holds."""
    n_live = int(is_live.sum())
    return all(n_live - int(is_live[latents].sum()) >= len(latents) for latents in sets.values())


def _texts(
    sources: ModelSources, second: str, corpus: Corpus, config: RunConfig, options: VerifyOptions
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """By kind of text its tokens, the positions to patch (all of a row) and those to count (of that kind)."""
    counted = corpus.counted(config.data)
    found = {}
    for at, name in enumerate(corpus.origins):
        chosen = counted & (corpus.origin == at)
        rows = chosen.any(dim=1).nonzero().flatten()
        enough = int((chosen[rows].sum(dim=1).cumsum(dim=0) < options.causal_tokens).sum()) + 1
        if len(rows):
            at_rows = rows[:enough]
            found[name] = corpus.held_out[at_rows], counted[at_rows], chosen[at_rows]
    if not is_bundled(config):  # whose held-out text holds the second model's own answers
        found[f"{second}'s own text"] = _own_text(sources, second, corpus, config, options)
    return found


def _own_text(
    sources: ModelSources, second: str, corpus: Corpus, config: RunConfig, options: VerifyOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """What the second model writes after the beginnings of held-out rows, sampled at temperature 1."""
    n_rows = min(len(corpus.held_out), -(-options.causal_tokens // _ANSWER_TOKENS))
    prompts = corpus.held_out[:n_rows, :_PROMPT_TOKENS].tolist()
    end = None if sources.tokenizer is None else sources.tokenizer.eos_token_id
    with sources.on_device(second) as model:
        answers = generate(
            model,
            prompts,
            max_new_tokens=_ANSWER_TOKENS,
            stop_ids=() if end is None else (end,),
            temperature=1.0,
            generator=torch.Generator(model.device).manual_seed(options.seed),
        )
    tokens = torch.zeros(n_rows, _PROMPT_TOKENS + _ANSWER_TOKENS, dtype=torch.int64)
    is_text, is_answer = (torch.zeros(tokens.shape, dtype=torch.bool) for _ in range(2))
    dropped = () if sources.id_policy is None else sources.id_policy.drop_ids
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids = [*prompt, *(i for i in answer if i not in dropped)]
        tokens[row, : len(ids)] = torch.tensor(ids)
        is_text[row, : len(ids)] = True
        is_answer[row, len(prompt) : len(ids)] = True
    kept = corpus.kept(tokens, config.data)
    return tokens, is_text & kept, is_answer & kept


def _mean_difference(sources: ModelSources, corpus: Corpus, config: RunConfig) -> Tensor:
    """Mean of second less first activation on training text."""
    batches = []
    for tokens in training_batches(corpus, config.data)[:_MEAN_BATCHES]:
        rows = sources.harvest(tokens)[corpus.kept(tokens, config.data)]
        batches.append(MeasureBatch(rows=rows, sequence=torch.zeros(len(rows), dtype=torch.int64)))
    return difference_of_means(difference_moments(batches, sources.sources)).vector
