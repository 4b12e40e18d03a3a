"""What happens to token ids that do not mean the same to every source: dropped, masked or replaced."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.errors import AdapterMismatchError
from crosscoders.models.round_trip import Retokenised, decode, lost_by_replacing
from crosscoders.models.tokens import changed_ids, check_tokenizers, describe_ids

_ACTIONS = ("drop", "mask", "replace")
_ROWS_AT_ONCE = 256
# Where a pair's control tokens stand: between a turn and its reasoning, and between reasoning and answer.
_PROBE = ("Add 2 and 3.", "\nOkay, so I add them. That gives 5.\n", "\n\nThe answer is 5.")


@dataclass(frozen=True, kw_only=True)
class IdRule:
    """What to do with some token ids.

    Args:
        action: "drop": the token is taken out of the sequence and no model reads it. "mask": every model
            reads it as it is, its row is never served or measured. "replace": `source` reads `neutral` in its
            place, and the row is not served either, since the models read different tokens there.
        token_ids: The ids; kept sorted, each once.
        source: For "replace": name of the source that reads the neutral token.
        neutral: For "replace": id of a token that means the same to all sources, or text that is exactly
            that one token; `resolve_policy` turns the text into the id. Added tokens such as "<|fim_pad|>"
            never merge with their neighbors and are the safe choice.

    Raises:
        ValueError: No ids or negative ones, another action, a neutral token that is neither text nor an id,
            or `source` and `neutral` missing for "replace" or given for another action.
    """

    action: Literal["drop", "mask", "replace"]
    token_ids: tuple[int, ...]
    source: str = ""
    neutral: str | int | None = None

    def __post_init__(self) -> None:
        _check_action(self.action)
        ids = tuple(sorted(set(self.token_ids)))
        if not ids or any(type(index) is not int or index < 0 for index in ids):
            raise ValueError(
                f"IdRule: token_ids must be ids of at least 0, and some, got {self.token_ids!r}."
            )
        object.__setattr__(self, "token_ids", ids)
        is_complete = bool(self.source) and self.neutral is not None
        _check_reading(self.source, self.neutral)
        if self.action == "replace" and not is_complete:
            raise ValueError(
                "IdRule: 'replace' needs source= (who reads another token) and neutral= (which one), "
                f"got source={self.source!r}, neutral={self.neutral!r}."
            )
        if self.action != "replace" and (self.source or self.neutral is not None):
            raise ValueError(
                f"IdRule: {self.action!r} holds for all sources; source= and neutral= belong to 'replace', "
                f"got source={self.source!r}, neutral={self.neutral!r}."
            )


@dataclass(frozen=True, kw_only=True)
class IdPolicy:
    """Rules for token ids whose meaning differs between sources.

    Get it checked against the tokenizers with `resolve_policy`, which also turns neutral texts into ids.

    Args:
        rules: No id stands in two rules, except in "replace" rules for different sources.

    Raises:
        ValueError: Two rules claim one id.

    Example:
        policy = IdPolicy(rules=(
            IdRule(action="drop", token_ids=(151643, 151644, 151645, 151646, 151647)),
            IdRule(action="replace", token_ids=(151648, 151649), source="base", neutral="<|fim_pad|>"),
        ))
        sources = load_sources({"base": ..., "distilled": ...}, id_policy=policy)
    """

    rules: tuple[IdRule, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(self.rules))
        claimed: dict[int, list[IdRule]] = {}
        for rule in self.rules:
            for index in rule.token_ids:
                for other in claimed.setdefault(index, []):
                    both_replace = other.action == rule.action == "replace" and other.source != rule.source
                    if not both_replace:
                        raise ValueError(
                            f"IdPolicy: id {index} stands in two rules ({other.action!r} and "
                            f"{rule.action!r}); give each id one, or 'replace' rules for different sources."
                        )
                claimed[index].append(rule)

    @property
    def drop_ids(self) -> tuple[int, ...]:
        """Ids that are taken out of every sequence, sorted."""
        return self._ids("drop")

    @property
    def excluded_ids(self) -> tuple[int, ...]:
        """Ids whose rows are never served or measured: masked and replaced ones, sorted."""
        return self._ids("mask", "replace")

    @property
    def covered_ids(self) -> tuple[int, ...]:
        """All ids with a rule, sorted."""
        return self._ids(*_ACTIONS)

    @typed
    def drop_from(self, documents: Sequence[Any]) -> list[Any]:
        """Take the ids to drop out of documents.

        Args:
            documents: Token ids of each document, as lists or NumPy arrays.

        Returns:
            The documents in order and in their own form; those that nothing is left of are left out.
        """
        if not self.drop_ids:
            return [document for document in documents if len(document)]
        dropped = frozenset(self.drop_ids)
        kept = [_without(document, dropped) for document in documents]
        return [document for document in kept if len(document)]

    @typed
    def tokens_for(self, source: str, tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
        """What one source reads in place of `tokens`: neutral ids where a "replace" rule names it.

        Args:
            source: Name of the source.
            tokens: Token ids.

        Returns:
            The ids for this source; `tokens` itself where nothing is replaced for it.

        Raises:
            ValueError: A neutral token that is still text; `resolve_policy` gives the policy with ids.
        """
        replaced = tokens
        for rule in self._replacing(source):
            if not isinstance(rule.neutral, int):
                raise ValueError(
                    f"IdPolicy.tokens_for: neutral {rule.neutral!r} is text; use the policy that "
                    "resolve_policy returns."
                )
            found = torch.isin(tokens, torch.tensor(rule.token_ids, device=tokens.device, dtype=tokens.dtype))
            replaced = torch.where(found, rule.neutral, replaced)
        return replaced

    @typed
    def verify_retokenised(
        self, tokens: Int[Tensor, "batch pos"], tokenizer: Any, source: str
    ) -> Retokenised:
        """Check that what a source reads is what its tokenizer would make of the replaced text.

        Each row with a replaced position is decoded and encoded again. A row that does not come back even as
        it was before (its ends may cut a character in two) counts only the positions that replacing lost.

        Args:
            tokens: Token ids as all sources get them.
            tokenizer: The tokenizer of `source`.
            source: Name of the source.

        Returns:
            How many rows and positions were replaced, and how many do not come back.
        """
        replaced = self.tokens_for(source, tokens)
        is_replaced = replaced != tokens
        rows = torch.nonzero(is_replaced.any(dim=1)).flatten()
        lost = [
            positions
            for some in rows.split(_ROWS_AT_ONCE)
            for positions in lost_by_replacing(tokens[some].tolist(), replaced[some].tolist(), tokenizer)
        ]
        return Retokenised(
            n_rows=len(rows),
            n_rows_lost=sum(bool(positions) for positions in lost),
            n_positions=int(is_replaced.sum()),
            n_positions_lost=sum(len(positions) for positions in lost),
        )

    @typed
    def to_dict(self) -> dict[str, Any]:
        """Plain form of the policy; `from_dict` inverts it."""
        return {
            "rules": [
                {
                    "action": rule.action,
                    "token_ids": list(rule.token_ids),
                    **({"source": rule.source, "neutral": rule.neutral} if rule.action == "replace" else {}),
                }
                for rule in self.rules
            ]
        }

    @classmethod
    @typed
    def from_dict(cls, data: Mapping[str, Any]) -> "IdPolicy":
        """Build a policy from plain values.

        Args:
            data: {"rules": [{"action": ..., "token_ids": [...], "source": ..., "neutral": ...}, ...]}.

        Raises:
            ValueError: Unknown or missing keys, or a rule that is none.
        """
        fields = {field.name for field in dataclasses.fields(IdRule)}
        if set(data) != {"rules"} or not isinstance(data["rules"], list | tuple):
            raise ValueError(f"IdPolicy: expected the one key 'rules' with a list, got {sorted(data)}.")
        for at, rule in enumerate(data["rules"]):
            keys = set(rule) if isinstance(rule, Mapping) else set()
            is_rule = {"action", "token_ids"} <= keys <= fields
            if not is_rule or not isinstance(rule["token_ids"], list | tuple):
                raise ValueError(
                    f"IdPolicy: rule {at} must be a table with action and token_ids (keys {sorted(fields)}), "
                    f"got {rule!r}."
                )
            _check_action(rule["action"])
            _check_reading(rule.get("source", ""), rule.get("neutral"))
        return cls(
            rules=tuple(IdRule(**{**rule, "token_ids": tuple(rule["token_ids"])}) for rule in data["rules"])
        )

    def _ids(self, *actions: str) -> tuple[int, ...]:
        return tuple(
            sorted({index for rule in self.rules if rule.action in actions for index in rule.token_ids})
        )

    def _replacing(self, source: str) -> list[IdRule]:
        return [rule for rule in self.rules if rule.action == "replace" and rule.source == source]


@typed
def resolve_policy(
    id_policy: IdPolicy | Literal["drop", "mask"] | None, tokenizers: Mapping[str, Any]
) -> IdPolicy | None:
    """Check a policy against the tokenizers of the sources and fill in what it leaves open.

    Args:
        id_policy: Rules, or "drop" or "mask" for every id whose meaning differs between any two sources; None
            allows no such id.
        tokenizers: Tokenizer of each source by name; None for a source that came without one.

    Returns:
        The policy with ids for its neutral tokens, or None if none was asked for.

    Raises:
        AdapterMismatchError: An id whose meaning differs is not covered, or a neutral token that does not
            exist, does not mean the same to all, or merges with its neighbors when encoded again.
        ValueError: "drop" or "mask" with fewer than two tokenizers to compare, or a "replace" rule for a
            source that does not exist or has no tokenizer.
    """
    if id_policy is None:
        check_tokenizers(tokenizers)
        return None
    changed = _changed_between_any(tokenizers)
    if isinstance(id_policy, str):
        n_present = sum(tokenizer is not None for tokenizer in tokenizers.values())
        if n_present < 2:
            raise ValueError(
                f"id_policy={id_policy!r} needs the tokenizers of two sources to find the ids that differ, "
                f"got {n_present}; load models that carry their tokenizer, or name the ids in an IdPolicy."
            )
        return IdPolicy(rules=(IdRule(action=id_policy, token_ids=tuple(changed)),) if changed else ())
    open_ids = {index: pair for index, pair in changed.items() if index not in id_policy.covered_ids}
    if open_ids:
        raise AdapterMismatchError(
            f"id_policy leaves {len(open_ids)} token ids open that differ in meaning between sources: "
            f"{describe_ids(open_ids)}. Add rules for them, or pass id_policy='drop' or 'mask'."
        )
    covered = id_policy.covered_ids
    resolved = IdPolicy(
        rules=tuple(
            _resolved_rule(rule, tokenizers, changed=changed, covered=covered) for rule in id_policy.rules
        )
    )
    for rule in resolved.rules:
        if rule.action == "replace":
            _check_probe(resolved, rule, tokenizers[rule.source])
    return resolved


def _check_action(action: object) -> None:
    if action not in _ACTIONS:
        raise ValueError(f"IdRule: action must be one of {_ACTIONS}, got {action!r}.")


def _check_reading(source: object, neutral: object) -> None:
    is_id = type(neutral) is int and neutral >= 0
    if not isinstance(source, str) or not (is_id or neutral is None or isinstance(neutral, str)):
        raise ValueError(
            "IdRule: source= must be a name and neutral= must be text or an id of at least 0, got "
            f"{source!r} and {neutral!r}."
        )


def _changed_between_any(tokenizers: Mapping[str, Any]) -> dict[int, tuple[str | None, str | None]]:
    """Ids that differ between any two; a difference between two shows as one of either to the first."""
    present = [tokenizer for tokenizer in tokenizers.values() if tokenizer is not None]
    found: dict[int, tuple[str | None, str | None]] = {}
    for tokenizer in present[1:]:
        if tokenizer is not present[0]:
            found = changed_ids(present[0], tokenizer) | found
    return dict(sorted(found.items()))


def _resolved_rule(
    rule: IdRule,
    tokenizers: Mapping[str, Any],
    *,
    changed: Mapping[int, tuple[str | None, str | None]],
    covered: tuple[int, ...],
) -> IdRule:
    if rule.action != "replace":
        return rule
    tokenizer = tokenizers.get(rule.source)
    if tokenizer is None:
        raise ValueError(
            f"id_policy: a 'replace' rule names source {rule.source!r}, which does not exist or has no "
            f"tokenizer; the sources with one are {[n for n, t in tokenizers.items() if t is not None]}."
        )
    neutral = rule.neutral
    if isinstance(neutral, str):
        ids = tokenizer(neutral, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or decode(ids, tokenizer) != neutral:
            raise AdapterMismatchError(
                f"id_policy: neutral {neutral!r} must be exactly one token of source {rule.source!r}, but "
                f"its tokenizer makes {ids} of it."
            )
        neutral = ids[0]
    assert isinstance(neutral, int)  # a 'replace' rule without neutral does not exist
    fault = ""
    if neutral in changed:
        fault = f"differs ({changed[neutral][0]!r} / {changed[neutral][1]!r})"
    elif neutral not in tokenizer.get_vocab().values():
        fault = "does not exist"
    elif neutral in covered:
        fault = "has a rule itself"
    if fault:
        raise AdapterMismatchError(
            f"id_policy: neutral {rule.neutral!r} (id {neutral}) must be an ordinary token that means the "
            f"same to all sources, but it {fault}; an added token such as '<|fim_pad|>' is a safe choice."
        )
    return dataclasses.replace(rule, neutral=neutral)


def _check_probe(policy: IdPolicy, rule: IdRule, tokenizer: Any) -> None:
    """The neutral token where control tokens stand: does the text come back as the same ids?"""
    pieces = [tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in _PROBE]
    probe = [*pieces[0], rule.token_ids[0], *pieces[1], rule.token_ids[0], *pieces[2]]
    report = policy.verify_retokenised(torch.tensor([probe]), tokenizer, rule.source)
    if report.n_rows_lost:
        raise AdapterMismatchError(
            f"id_policy: neutral id {rule.neutral} of source {rule.source!r} does not survive between "
            f"{_PROBE[0]!r}, {_PROBE[1]!r} and {_PROBE[2]!r}: encoded again, {report.n_positions_lost} "
            "positions come out different. Choose an added token such as '<|fim_pad|>', which never merges."
        )


def _without(document: Any, dropped: frozenset[int]) -> Any:
    if isinstance(document, np.ndarray):
        return document[~np.isin(document, np.fromiter(dropped, dtype=np.int64))]
    return [index for index in document if index not in dropped]
