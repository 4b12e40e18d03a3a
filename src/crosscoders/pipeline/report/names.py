"""The text of every token that a report shows: those of the rows that were read, and those of the lens."""

import dataclasses

import torch
from jaxtyping import Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.harvest import ModelSources
from crosscoders.models.tokens import changed_ids
from crosscoders.pipeline.report.lens import Lens
from crosscoders.reasoning.token_text import token_texts
from crosscoders.report.site.text import TokenText


@typed
def name_tokens(
    tokens: Int[Tensor, "batch pos"], lens: Lens | None, sources: ModelSources
) -> tuple[TokenText, Lens | None]:
    """The rows with the strings of all tokens that are shown, and the lens in terms of these strings.

    An id that means another token to one model than in the text, such as the control tokens of a base and of
    its reasoning distillate, has a string of its own in that model's lens.

    Args:
        tokens: Rows of token ids.
        lens: With token ids; None where no model has one.
        sources: The models with their tokenizers.

    Returns:
        The text; and the lens with indices of its strings in place of ids.
    """
    named = [] if lens is None else [lens.top.flatten(), lens.bottom.flatten()]
    ids = torch.cat([tokens.flatten(), *named]).unique()
    strings, own_ids, found = token_texts(sources.tokenizer, ids.tolist()), [ids], []
    for at, source in enumerate(sources.sources if lens is not None else ()):
        assert lens is not None
        shown = torch.stack([lens.top[:, at], lens.bottom[:, at]])
        others, texts = _other_names(sources, source.name, shown)
        first = len(strings)
        strings, own_ids = [*strings, *texts], [*own_ids, others]
        is_other = torch.isin(shown, others)
        found.append(
            torch.where(is_other, first + torch.searchsorted(others, shown), torch.searchsorted(ids, shown))
        )
    text = TokenText(
        tokens=torch.searchsorted(ids, tokens.flatten()),
        strings=strings,
        token_ids=torch.cat(own_ids),
        row_start=torch.arange(len(tokens) + 1) * tokens.shape[1],
    )
    if lens is None:
        return text, None
    top, bottom = torch.stack(found, dim=2)
    return text, dataclasses.replace(lens, top=top, bottom=bottom)


def _other_names(sources: ModelSources, name: str, shown: Tensor) -> tuple[Tensor, list[str]]:
    """Ids among those shown that mean another token to this model, ascending, and what they mean to it."""
    own = sources.models[name].tokenizer
    if own is None or own is sources.tokenizer:
        return shown.new_zeros(0), []
    changed = torch.tensor(list(changed_ids(sources.tokenizer, own)), dtype=torch.int64)
    ids = shown.unique()
    ids = ids[torch.isin(ids, changed)]
    return ids, token_texts(own, ids.tolist())
