"""Roles of tokens (template, prompt, thought, answer), and how latents share their firing among them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.reasoning.reading import LatentRows, read_latents
from crosscoders.row_stream import SupportsHarvest

ROLES: tuple[str, ...] = ("template", "prompt", "thought", "answer")
_UNKNOWN, _TEMPLATE, _PROMPT, _THOUGHT, _ANSWER = range(-1, 4)
# The chat markers of DeepSeek-R1 and of Qwen (ChatML); those that a tokenizer cannot write are passed over.
ASSISTANT_MARKERS: tuple[str, ...] = ("<\uff5cAssistant\uff5c>", "<|im_start|>assistant\n")
PROMPT_MARKERS: tuple[str, ...] = ("<\uff5cUser\uff5c>", "<|im_start|>user\n", "<|im_start|>system\n")


@dataclass(frozen=True, kw_only=True)
class RoleMeasures:
    """Where latents fire, by role of the token.

    Args:
        role_names: Name of each role, in the order of the columns.
        n_tokens: Counted tokens of each role.
        frequency: Share of a role's tokens on which each latent fires; NaN for a role without tokens.
        mean_activation: Mean activation where it fires in that role; NaN where it never does.
        share: Share of a latent's total activation that falls on the role; NaN for a latent that never fires.
            Read it beside the share of tokens, which it equals for a latent that does not care.
    """

    role_names: tuple[str, ...]
    n_tokens: Int[Tensor, " _role"]
    frequency: Float[Tensor, "latent _role"]
    mean_activation: Float[Tensor, "latent _role"]
    share: Float[Tensor, "latent _role"]


class RoleMeter:
    """Adds up firing by role while rows of text go by; `measure_roles` drives it over a whole text.

    Args:
        n_latents: Latents of the crosscoder.
        roles: Role of every token of the text, an index into `role_names`, or -1 where unknown.
        role_names: Names of the roles.

    Raises:
        ValueError: A role that has no name.
    """

    @typed
    def __init__(
        self, n_latents: int, *, roles: Int[Tensor, "batch pos"], role_names: tuple[str, ...] = ROLES
    ) -> None:
        if int(roles.max()) >= len(role_names) or int(roles.min()) < -1:
            raise ValueError(
                f"RoleMeter: roles must be -1 to {len(role_names) - 1} for {role_names}, "
                f"got {int(roles.min())} to {int(roles.max())}."
            )
        self.roles, self.role_names, self.n_latents = roles, role_names, n_latents
        self._n_tokens = torch.zeros(len(role_names), dtype=torch.int64)
        self._n_fired = torch.zeros(n_latents * len(role_names), dtype=torch.int64)
        self._sum = torch.zeros(n_latents * len(role_names), dtype=torch.float64)

    @typed
    def update(self, rows: LatentRows) -> None:
        """Take in the latents of some rows.

        Args:
            rows: Rows that were not given before.
        """
        roles = self.roles[rows.first_row : rows.first_row + len(rows.tokens)]
        counted = roles[rows.mask & (roles >= 0)]
        self._n_tokens += torch.bincount(counted, minlength=len(self.role_names))
        role = roles[rows.row, rows.position]
        known = role >= 0
        cell = rows.latent[known] * len(self.role_names) + role[known]
        self._n_fired += torch.bincount(cell, minlength=len(self._n_fired))
        self._sum.index_add_(0, cell, rows.activation[known].double())

    @typed
    def measures(self) -> RoleMeasures:
        """The measures over everything that was taken in."""
        shape = (self.n_latents, len(self.role_names))
        n_fired, total = self._n_fired.view(shape).double(), self._sum.view(shape)
        return RoleMeasures(
            role_names=self.role_names,
            n_tokens=self._n_tokens.clone(),
            frequency=n_fired / self._n_tokens,
            mean_activation=total / n_fired,
            share=total / total.sum(dim=1, keepdim=True),
        )


@typed
def measure_roles(
    crosscoder: Crosscoder,
    sources: SupportsHarvest,
    *,
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    roles: Int[Tensor, "batch pos"],
    role_names: tuple[str, ...] = ROLES,
    rows_at_a_time: int = 32,
) -> RoleMeasures:
    """How every latent's firing is shared among the roles of tokens, in one pass over held-out text.

    Args:
        crosscoder: A trained crosscoder.
        sources: The models, each with its hook.
        tokens: Rows of held-out token ids.
        mask: Which tokens count.
        roles: Role of each token, an index into `role_names`, or -1 where unknown.
        role_names: Names of the roles.
        rows_at_a_time: Rows that go through the models together.

    Returns:
        Counts and summed activations per latent and role.

    Raises:
        ValueError: A role that has no name, or a mask that counts no token.
    """
    meter = RoleMeter(crosscoder.n_latents, roles=roles, role_names=role_names)
    for rows in read_latents(crosscoder, sources, tokens, mask=mask, rows_at_a_time=rows_at_a_time):
        meter.update(rows)
    return meter.measures()


@typed
def chat_roles(
    tokens: Int[Tensor, "batch pos"],
    tokenizer: Any,
    *,
    think: tuple[str, str] = ("<think>", "</think>"),
    assistant: Sequence[str] = ASSISTANT_MARKERS,
    prompt: Sequence[str] = PROMPT_MARKERS,
) -> Int[Tensor, "batch pos"]:
    """Label the tokens of chat-templated text by role, from special tokens and markers.

    Special tokens and the markers themselves are template. What follows a prompt marker is prompt; what
    follows an assistant marker is answer; what lies between the two thinking markers is thought, also if the
    opening one is missing, as in rows that begin in the middle of a thought. What precedes the first marker
    of a document is prompt, or thought if that marker closes one. An end-of-text token starts over.

    Args:
        tokens: Token ids.
        tokenizer: The tokenizer that made them.
        think: Markers that open and close a thought.
        assistant: Markers that open an assistant's turn.
        prompt: Markers that open any other turn.

    Returns:
        Per token an index into `ROLES`, or -1 in documents without any marker.

    Raises:
        ValueError: The tokenizer can write none of the assistant markers, so that no turn can be told.
    """
    markers = {
        **dict.fromkeys(_marker_ids(prompt, tokenizer), _PROMPT),
        **dict.fromkeys(_marker_ids(assistant, tokenizer), _ANSWER),
    }
    if _ANSWER not in markers.values():
        raise ValueError(
            f"chat_roles: the tokenizer can write none of the assistant markers {list(assistant)}; "
            "pass those of its chat template."
        )
    opening, closing = (next(iter(_marker_ids([marker], tokenizer)), ()) for marker in think)
    markers |= {ids: _THOUGHT for ids in [opening] if ids}
    labels = _RowLabels(
        markers=markers, closing=closing, special=set(tokenizer.all_special_ids), end=tokenizer.eos_token_id
    )
    return torch.tensor([labels.of(row) for row in tokens.tolist()], dtype=torch.int64).view(tokens.shape)


@dataclass(frozen=True, kw_only=True)
class _RowLabels:
    markers: dict[tuple[int, ...], int]
    closing: tuple[int, ...]
    special: set[int]
    end: int | None

    def of(self, row: list[int]) -> list[int]:
        labels: list[int] = []
        state, turn = _UNKNOWN, 0  # what is being read, and where it began
        while len(labels) < len(row):
            at = len(labels)
            marker = self._marker_at(row, at)
            if marker:
                labels[turn:] = [self._in_hindsight(label, marker) for label in labels[turn:]]
                labels += [_TEMPLATE] * len(marker)
                state, turn = self._after(marker, state), len(labels)
            elif row[at] in self.special:
                labels.append(_TEMPLATE)
                if row[at] == self.end:
                    state, turn = _UNKNOWN, len(labels)
            else:
                labels.append(state)
        return labels

    def _in_hindsight(self, label: int, marker: tuple[int, ...]) -> int:
        if marker == self.closing:
            return _THOUGHT if label in (_UNKNOWN, _ANSWER) else label
        return _PROMPT if label == _UNKNOWN else label

    def _after(self, marker: tuple[int, ...], state: int) -> int:
        thinking = marker == self.closing or self.markers[marker] == _THOUGHT
        if thinking and state == _PROMPT:  # somebody quotes the marker
            return _PROMPT
        return _ANSWER if marker == self.closing else self.markers[marker]

    def _marker_at(self, row: list[int], at: int) -> tuple[int, ...]:
        found = [
            marker
            for marker in (*self.markers, self.closing)
            if marker and tuple(row[at : at + len(marker)]) == marker
        ]
        return max(found, key=len, default=())


def _marker_ids(markers: Sequence[str], tokenizer: Any) -> list[tuple[int, ...]]:
    """Token ids of those markers that the tokenizer can write; the others occur in no text of its."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    written = [tuple(tokenizer.encode(marker, add_special_tokens=False)) for marker in markers]
    return [ids for ids in written if ids and (unknown is None or unknown not in ids)]
