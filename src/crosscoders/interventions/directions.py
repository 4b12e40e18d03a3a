"""Adding a fixed vector to the residual stream of a running model, everywhere or at chosen positions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.interventions.positions import Positions
from crosscoders.interventions.site import SiteForward, edit_site
from crosscoders.models.base import LanguageModel
from crosscoders.models.load import load_model


class AddVector:
    """Adds one vector to the residual stream at a hook while `on` is active.

    This is what `SteeringHook` does with a latent's direction; use it directly for controls, such as a random
    direction of the same norm or an unembedding direction. Several of them add up, in any order.

    Args:
        vector: What is added at every chosen position, in the raw space of the model.
        hook_name: Residual-stream hook at which it is added, or "half".
        after: Add only at positions strictly after this marker's first occurrence in the row: text (of a
            model that brings a tokenizer), one token id, or several ids in a row. None is everywhere.
        from_position: Add only from this position of the row on, counted without left padding.
        positions: Add only at these positions of the row, counted without left padding. None is any.
        at_tokens: Add only where the token read is one of these ids. None is any token.

    Raises:
        ValueError: A vector that is not finite, a negative position, or empty `positions` or `at_tokens`.

    Example:
        with AddVector(direction, hook_name="half").on(model):
            answers = generate(model, prompts, max_new_tokens=50, stop_ids=[1])
    """

    @typed
    def __init__(
        self,
        vector: Float[Tensor, " d_model"],
        *,
        hook_name: str,
        after: str | int | Sequence[int] | None = None,
        from_position: int = 0,
        positions: Sequence[int] | None = None,
        at_tokens: Sequence[int] | None = None,
    ) -> None:
        if not bool(vector.isfinite().all()):
            raise ValueError(f"AddVector at {hook_name!r}: the vector holds NaN or infinite entries.")
        self.vector = vector.detach().clone()
        self.hook_name = hook_name
        self.where = Positions(
            owner=f"AddVector at {hook_name!r}",
            after=after,
            from_position=from_position,
            positions=positions,
            at_tokens=at_tokens,
        )

    def describe(self) -> dict[str, Any]:
        """The hook as JSON-ready facts, for result records."""
        return {
            "kind": "add_vector",
            "hook_name": self.hook_name,
            "norm": float(self.vector.norm()),
            "where": self.where.describe(),
        }

    @contextmanager
    def on(self, model: Any) -> Iterator[LanguageModel]:
        """Act on every forward of a model while the block runs, `generate` with a KV cache included.

        If it is limited to positions, enter the block before a generation starts, not in its middle.

        Args:
            model: LanguageModel, plain Hugging Face causal language model, or TransformerBridge.

        Yields:
            The model as a LanguageModel.

        Raises:
            ValueError: The vector does not fit the model, or the marker cannot be turned into token ids.
        """
        what = f"AddVector at {self.hook_name!r}: the vector"
        target = as_target(model, d_model=self.vector.shape[0], what=what)
        with (
            self.where.on(target) as chosen,
            edit_site(target, self.hook_name) as site,
            site.part(self._adding(chosen)),
        ):
            yield target

    def _adding(self, chosen: Callable[[], Tensor | None]) -> Callable[[SiteForward], Tensor]:
        def add(forward: SiteForward) -> Tensor:
            vector = self.vector.to(device=forward.activation.device, dtype=forward.dtype)
            return only_at(chosen(), vector)

        return add


@typed
def random_vector_like(
    vector: Float[Tensor, " d_model"], *, generator: torch.Generator
) -> Float[Tensor, " d_model"]:
    """A vector of the same norm in a uniformly random direction: the control for steering by `vector`.

    Args:
        vector: The vector whose norm and width are taken.
        generator: Source of randomness, on the CPU.

    Returns:
        The control, in float32 on the vector's device.
    """
    direction = torch.randn(vector.shape, generator=generator)
    return (direction / direction.norm()).to(vector.device) * vector.float().norm()


def only_at(chosen: Tensor | None, delta: Tensor) -> Tensor:
    """An addition at the chosen positions and zero elsewhere.

    Args:
        chosen: [batch pos]; None is all.
        delta: [d_model] or [batch pos d_model].
    """
    return delta if chosen is None else delta.where(chosen[:, :, None], 0.0)


@typed
def as_target(model: Any, *, d_model: int, what: str) -> LanguageModel:
    """A model as a `LanguageModel`, if a vector of this width fits its residual stream.

    Args:
        model: LanguageModel, plain Hugging Face causal language model, or TransformerBridge.
        d_model: Width of what will be added.
        what: Start of the message.

    Raises:
        ValueError: Another width.
    """
    target = model if isinstance(model, LanguageModel) else load_model(model, name=type(model).__name__)
    if d_model != target.d_model:
        raise ValueError(
            f"{what} has width {d_model}, but the residual stream of {target.name!r} has {target.d_model}; "
            "is this the model of the right source?"
        )
    return target
