"""What a sweep steers by: directions that know their kind, and controls of the same norm."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.interventions.directions import AddVector, random_vector_like
from crosscoders.models.base import LanguageModel

DirectionKind = Literal["latent", "wrong_category", "random", "unembedding", "other"]


class Steering(Protocol):
    """What acts on a model inside a `with` block, such as `SteeringHook` and `AddVector`."""

    def on(self, model: Any) -> AbstractContextManager[LanguageModel]:
        """Act on a model while the block runs.

        Args:
            model: The model to steer.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Direction:
    """One way to steer, at any strength.

    Args:
        name: How it is called in tables and figures.
        kind: "latent" is what the sweep is about; "wrong_category" (latents of other categories), "random"
            and "unembedding" are controls; "other" is neither.
        at: Gives what steers at a strength; strength 0 must be the unsteered model.
        key: Tells this direction from others in the cache of a sweep; needed only for that.
    """

    name: str
    kind: DirectionKind
    at: Callable[[float], Steering]
    key: str = ""


@typed
def additive_direction(
    vector: Float[Tensor, " d_model"],
    *,
    name: str,
    kind: DirectionKind,
    hook_name: str,
    after: str | int | Sequence[int] | None = None,
    from_position: int = 0,
    at_tokens: Sequence[int] | None = None,
) -> Direction:
    """Adds strength * vector at a hook.

    Args:
        vector: What strength 1 adds, in the model's raw space, such as `SteeringHook(...).vector`.
        name: Name of the direction.
        kind: Kind of the direction.
        hook_name: Residual-stream hook, or "half".
        after: Where to add (see `AddVector`).
        from_position: Where to add (see `AddVector`).
        at_tokens: Where to add (see `AddVector`).

    Returns:
        The direction; its key covers the vector and where it is added.
    """
    unit = vector.detach().clone()

    def at(strength: float) -> AddVector:
        return AddVector(
            strength * unit,
            hook_name=hook_name,
            after=after,
            from_position=from_position,
            at_tokens=at_tokens,
        )

    digest = hashlib.sha256(unit.float().cpu().numpy().tobytes())
    where = (hook_name, after, from_position, None if at_tokens is None else tuple(at_tokens))
    digest.update(repr(where).encode())
    return Direction(name=name, kind=kind, at=at, key=digest.hexdigest())


@typed
def random_directions(
    like: Float[Tensor, " d_model"],
    *,
    n: int,
    generator: torch.Generator,
    hook_name: str,
    after: str | int | Sequence[int] | None = None,
    at_tokens: Sequence[int] | None = None,
) -> list[Direction]:
    """Controls: uniformly random directions of the norm that another vector has.

    Args:
        like: The vector whose norm they take.
        n: How many.
        generator: Source of randomness, on the CPU.
        hook_name: Residual-stream hook, or "half".
        after: Where to add (see `AddVector`).
        at_tokens: Where to add (see `AddVector`).

    Returns:
        `n` directions, named "random 1", "random 2" and so on.
    """
    return [
        additive_direction(
            random_vector_like(like, generator=generator),
            name=f"random {at + 1}",
            kind="random",
            hook_name=hook_name,
            after=after,
            at_tokens=at_tokens,
        )
        for at in range(n)
    ]


@typed
def unembedding_direction(
    model: LanguageModel,
    token: int,
    *,
    like: Float[Tensor, " d_model"],
    name: str,
    hook_name: str,
    after: str | int | Sequence[int] | None = None,
    at_tokens: Sequence[int] | None = None,
) -> Direction:
    """Control: the row of the unembedding that belongs to one token, which pushes towards that word.

    A latent that does no more than this is a word, not a way to reason. The row is the direction that raises
    the token's logit most only where the unembedding reads the stream as it is: the final norm's gain, which
    weights the dimensions before that, is not folded in, and neither is what later layers make of it.

    Args:
        model: The model that is steered.
        token: The token, such as the one of "Wait".
        like: The vector whose norm it takes.
        name: Name of the direction.
        hook_name: Residual-stream hook, or "half".
        after: Where to add (see `AddVector`).
        at_tokens: Where to add (see `AddVector`).

    Returns:
        The direction, of the norm of `like`.

    Raises:
        ValueError: No such token.
    """
    if not 0 <= token < model.n_vocab:
        raise ValueError(f"unembedding_direction: token {token} is outside [0, {model.n_vocab}).")
    word = model.causal_lm.get_output_embeddings().weight[token].detach().float()
    return additive_direction(
        word / word.norm() * like.float().norm().to(word.device),
        name=name,
        kind="unembedding",
        hook_name=hook_name,
        after=after,
        at_tokens=at_tokens,
    )
