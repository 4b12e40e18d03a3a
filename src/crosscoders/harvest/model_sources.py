"""`ModelSources`: language models, each read at its hook, that are fed the same tokens."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.errors import AdapterMismatchError
from crosscoders.models.attention import attention_error
from crosscoders.models.base import LanguageModel
from crosscoders.models.hooks import parse_residual_hook
from crosscoders.models.id_policy import IdPolicy
from crosscoders.models.placement import weights_on
from crosscoders.models.tokens import tokenizer_fingerprint
from crosscoders.sources import Source, check_sources, column_slices, source_index, width

# Largest difference that rounding explains between two orders of summation in attention. Seen with random
# weights: 5e-7 (float32, 4 layers, d_model 512), a few 1e-3 (bfloat16).
_ATTENTION_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class ModelSources:
    """Language models, each read at one hook, that are all fed the same tokens.

    Build it with `load_sources`.

    Args:
        models: The model of each source by source name, in the order of the columns.
        hook_names: Full hook name of each source.
        tokenizer: The tokenizer whose ids all sources understand, or None.
        reads_on: For each source whose weights live in CPU memory the device on which it reads.
        id_policy: What happens to ids whose meaning differs between sources; None if none differs.
        onto: Device on which the activations of all sources come together; None for the first source's.
    """

    def __init__(
        self,
        models: Mapping[str, LanguageModel],
        *,
        hook_names: Mapping[str, str],
        tokenizer: Any,
        reads_on: Mapping[str, torch.device] | None = None,
        id_policy: IdPolicy | None = None,
        onto: torch.device | None = None,
    ) -> None:
        self.models = dict(models)
        self.tokenizer = tokenizer
        self.id_policy = id_policy
        self._reads_on = dict(reads_on or {})
        self._onto = onto
        vocabulary = {
            name: tokenizer if model.tokenizer is None else model.tokenizer
            for name, model in self.models.items()
        }
        fingerprints = _fingerprints(list(vocabulary.values()))
        self.sources: tuple[Source, ...] = tuple(
            Source(
                name=name,
                d_model=self._hook_width(name, hook_names[name]),
                hook_name=hook_names[name],
                model_id=model.model_id,
                revision=model.revision,
                tokenizer_fingerprint=fingerprints[id(vocabulary[name])],
            )
            for name, model in self.models.items()
        )
        check_sources(self.sources)

    @typed
    def only(self, names: Sequence[str]) -> "ModelSources":
        """Some of the sources, in the order given, with the same models.

        Args:
            names: Names of sources.

        Raises:
            ValueError: No name, no such source, or one twice.
        """
        at = [source_index(self.sources, name) for name in names]
        check_sources([self.sources[i] for i in at])
        return ModelSources(
            {name: self.models[name] for name in names},
            hook_names={self.sources[i].name: self.sources[i].hook_name for i in at},
            tokenizer=self.tokenizer,
            reads_on={name: device for name, device in self._reads_on.items() if name in names},
            id_policy=self.id_policy,
            onto=self._onto,
        )

    @property
    def exclude_token_ids(self) -> tuple[int, ...]:
        """Ids whose rows are never served or measured, as `id_policy` says; empty without one."""
        return () if self.id_policy is None else self.id_policy.excluded_ids

    @typed
    def harvest(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos width"]:
        """Raw activations of every source at every position.

        Each model runs up to its deepest hook and no further; a model that serves several sources runs once.
        Padding needs no mask as long as it stands on the right (see `LanguageModel`).

        Args:
            tokens: Token ids, the same for all sources; a "replace" rule of `id_policy` is applied here.

        Returns:
            float32 activations, sources side by side, on the first source's device unless the sources were
            loaded `onto` another.

        Raises:
            ValueError: NaN or infinite activations (the message names source, hook and first position), or an
                id that `id_policy` drops.
        """
        self._check_dropped(tokens)
        captured: dict[str, Tensor] = {}
        for names, read in self._readings(tokens):
            with self.on_device(names[0]) as model:
                found = model.capture(read, list(dict.fromkeys(self._hook(name) for name in names)))
            captured |= {name: found[self._hook(name)] for name in names}
            del found
        device = self._onto or captured[self.sources[0].name].device
        activations = torch.empty(*tokens.shape, width(self.sources), dtype=torch.float32, device=device)
        for source, columns in zip(self.sources, column_slices(self.sources).values(), strict=True):
            activations[..., columns] = captured.pop(source.name)
            _check_finite(source, activations[..., columns])
        return activations

    @typed
    def tokens_for(self, name: str, tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
        """The ids that a source reads: the tokens themselves, but for a "replace" rule of `id_policy`.

        Args:
            name: Name of the source.
            tokens: Token ids as all sources get them.

        Returns:
            Ids of the same shape; the same tensor where nothing is replaced.
        """
        return tokens if self.id_policy is None else self.id_policy.tokens_for(name, tokens)

    @contextmanager
    def on_device(self, name: str) -> Iterator[LanguageModel]:
        """A source's model, with its weights on the device on which it reads while the block runs.

        Args:
            name: Name of the source.

        Yields:
            The model. Only weights that live in CPU memory (`offload`) are moved, and these go back.
        """
        model = self.models[name]
        if name not in self._reads_on:
            yield model
            return
        with weights_on(model.causal_lm, self._reads_on[name]):
            yield model

    @typed
    def check_attention(self, tokens: Int[Tensor, "batch pos"]) -> dict[str, float]:
        """Check that each model's fast attention agrees with eager attention at its hook.

        Args:
            tokens: A few rows of token ids; see `attention_error`.

        Returns:
            The relative difference of each source.

        Raises:
            AdapterMismatchError: A difference that rounding in the model's dtype does not explain.
        """
        errors = {}
        for source in self.sources:
            with self.on_device(source.name) as model:
                read = self.tokens_for(source.name, tokens)
                errors[source.name] = attention_error(model, read, hook_name=source.hook_name)
            tolerance = _ATTENTION_TOLERANCE.get(model.dtype, 0.0)
            if not errors[source.name] <= tolerance:
                raise AdapterMismatchError(
                    f"source {source.name!r}: fast and eager attention differ by {errors[source.name]:.3g} "
                    f"at {source.hook_name!r}, expected at most {tolerance:g} in {model.dtype}; load the "
                    "module with attn_implementation='eager' and pass it instead."
                )
        return errors

    def _hook(self, name: str) -> str:
        return next(source.hook_name for source in self.sources if source.name == name)

    def _hook_width(self, name: str, hook_name: str) -> int:
        if parse_residual_hook(hook_name) is not None:
            return self.models[name].d_model
        one_token = torch.zeros(1, 1, dtype=torch.int64)
        with self.on_device(name) as model:
            return model.capture(one_token, [hook_name])[hook_name].shape[-1]

    def _readings(self, tokens: Tensor) -> list[tuple[list[str], Tensor]]:
        """Sources that one forward serves, and what it reads: the same weights on the same ids."""
        readings: dict[tuple[int, int], tuple[list[str], Tensor]] = {}
        for source in self.sources:
            read = self.tokens_for(source.name, tokens)
            lm = id(self.models[source.name].causal_lm)
            same = (at for at, (_, other) in readings.items() if at[0] == lm and torch.equal(other, read))
            names, _ = readings.setdefault(next(same, (lm, len(readings))), ([], read))
            names.append(source.name)
        return list(readings.values())

    def _check_dropped(self, tokens: Tensor) -> None:
        dropped = () if self.id_policy is None else self.id_policy.drop_ids
        found = torch.isin(tokens, torch.tensor(dropped, dtype=tokens.dtype, device=tokens.device))
        if found.any():
            raise ValueError(
                f"harvest: ids {tokens[found].unique().tolist()} mean different things to the sources and "
                "id_policy drops them, but they are still there; take them out of the documents with "
                "sources.id_policy.drop_from before packing."
            )


def _fingerprints(tokenizers: Sequence[Any]) -> dict[int, str | None]:
    """Fingerprint of each tokenizer by identity, each computed once."""
    found: dict[int, str | None] = {id(None): None}
    for tokenizer in tokenizers:
        if id(tokenizer) not in found:
            found[id(tokenizer)] = tokenizer_fingerprint(tokenizer)
    return found


def _check_finite(source: Source, activations: Tensor) -> None:
    is_finite = torch.isfinite(activations).all(dim=-1)
    if not is_finite.all():
        sequence, position = torch.nonzero(~is_finite)[0].tolist()
        raise ValueError(
            f"source {source.name!r} at {source.hook_name!r}: {int((~is_finite).sum())} activations are NaN "
            f"or infinite, the first at (sequence {sequence}, position {position}); "
            "is the model's dtype too narrow (float16), or are its weights damaged?"
        )
