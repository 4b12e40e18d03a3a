"""`SteeringHook`: adding latents' decoder directions to a model while it runs."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.interventions.directions import AddVector
from crosscoders.models.base import LanguageModel
from crosscoders.sources import Source, source_index

SteeringUnit = Literal["residual_norm", "max_activation", "raw"]


class SteeringHook:
    """Adds the decoder directions of some latents to one source's residual stream.

    With u_j the unit vector along latent j's raw-space decoder row of the source, and c_j the strength, every
    chosen position gets h <- h + sum_j c_j * length_j * u_j (formula: Templeton et al. 2024; units as named
    below). It needs no codes, so one model is enough. Hooks compose: their additions sum, in any order.

    Args:
        crosscoder: The trained crosscoder.
        strengths: Strength of each latent by its index; negative ones push away.
        source: The source whose decoder row and hook are used.
        unit: What a strength of 1 means. "residual_norm": the mean norm of this source's residual stream,
            sqrt(d_model) / scale. "max_activation": what the latent itself adds at its largest activation.
            "raw": a vector of length 1.
        max_activations: Largest activation of each latent; required by, and only for, "max_activation".
        after: Add only at positions strictly after this marker (see `AddVector`).
        from_position: Add only from this position of the row on (see `AddVector`).
        at_tokens: Add only where the token read is one of these ids (see `AddVector`).

    Raises:
        ValueError: No such source or latent, no strengths, a strength or length that is not finite, or a
            source without hook name.

    Example:
        wait = SteeringHook(crosscoder, {1432: 0.6}, source="distilled", after="<think>")
        with wait.on(hf_model):
            out = hf_model.generate(**inputs, max_new_tokens=400)
    """

    @typed
    def __init__(
        self,
        crosscoder: Crosscoder,
        strengths: Mapping[int, int | float],
        *,
        source: str,
        unit: SteeringUnit = "residual_norm",
        max_activations: Mapping[int, int | float] | None = None,
        after: str | int | Sequence[int] | None = None,
        from_position: int = 0,
        at_tokens: Sequence[int] | None = None,
    ) -> None:
        where = crosscoder.sources[source_index(crosscoder.sources, source)]
        if not where.hook_name:
            raise ValueError(
                f"SteeringHook: source {source!r} names no hook (it was trained on own tensors); take "
                "crosscoder.steering_direction(latent, source) and AddVector(..., hook_name=...) instead."
            )
        if not strengths:
            raise ValueError("SteeringHook: strengths is empty; pass {latent: strength}.")
        if (unit == "max_activation") != (max_activations is not None):
            raise ValueError(
                f'SteeringHook: max_activations goes with unit="max_activation" and only with it, '
                f"got unit={unit!r} and max_activations={max_activations}."
            )
        self.strengths = dict(strengths)
        self.source = where
        self.unit = unit
        parts = [
            strength * _unit_vector(crosscoder, latent, where, unit=unit, max_activations=max_activations)
            for latent, strength in self.strengths.items()
        ]
        self._addition = AddVector(
            torch.stack(parts).sum(dim=0),
            hook_name=where.hook_name,
            after=after,
            from_position=from_position,
            at_tokens=at_tokens,
        )

    @property
    def vector(self) -> Float[Tensor, " d_model"]:
        """What is added at every chosen position, in the model's raw space."""
        return self._addition.vector

    def on(self, model: Any) -> AbstractContextManager[LanguageModel]:
        """Act on every forward of a model while the block runs, `generate` with a KV cache included.

        Args:
            model: The source's model: LanguageModel, plain Hugging Face module or TransformerBridge.

        Returns:
            A context manager that yields the model as a LanguageModel and leaves nothing behind.
        """
        return self._addition.on(model)


def _unit_vector(
    crosscoder: Crosscoder,
    latent: int,
    source: Source,
    *,
    unit: SteeringUnit,
    max_activations: Mapping[int, int | float] | None,
) -> Tensor:
    """The vector that strength 1 of a latent stands for."""
    direction = crosscoder.steering_direction(latent, source.name).float()
    norm = direction.norm().item()
    if not (math.isfinite(norm) and norm > 0):
        raise ValueError(
            f"SteeringHook: latent {latent} has decoder norm {norm} in source {source.name!r}; "
            "it has no direction."
        )
    if unit == "raw":
        return direction / norm
    if unit == "residual_norm":
        return direction / norm * (math.sqrt(source.d_model) / source.scale)
    if max_activations is None or latent not in max_activations:
        raise ValueError(f"SteeringHook: max_activations has no entry for latent {latent}.")
    return direction * max_activations[latent]
