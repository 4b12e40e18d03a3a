"""Shape and type checks at public calls, and the protocols that cross layers.

Axis legend (no other names): batch (tokens as rows), width (all sources side by side), latent, source,
d_model (one source), pos (position in a sequence), vocab. `nnz` and `row` count the stored entries and row
pointers of sparse latents, `held_out` rows of held-out text and `chosen` those picked from a table;
`category` is a category of reasoning.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int, TypeCheckError, jaxtyped
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def typed(fn: Callable[P, R]) -> Callable[P, R]:
    """Check shapes and types at the call, except while torch.compile is tracing.

    The checker is built at the first call, not at decoration, so importing the package stays cheap. A call
    costs about 20 us; set `JAXTYPING_DISABLE=1` to remove it.

    Args:
        fn: A function or method whose annotations are checked.

    Returns:
        The function with checked arguments and result.
    """
    bare = _without_checker(fn)
    checked: Callable[P, R] | None = None

    @functools.wraps(bare)
    def shell(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal checked
        if torch.compiler.is_compiling():
            return bare(*args, **kwargs)
        if checked is None:
            checked = _checked(bare)
        try:
            return checked(*args, **kwargs)
        except TypeCheckError as err:
            token = kwargs.get("token")
            if not token or isinstance(token, bool):
                raise
            raise _without_token(err, token) from None

    return shell


def _checked(fn: Callable[P, R]) -> Callable[P, R]:
    from beartype import beartype  # half of what importing this package would cost beyond torch

    return jaxtyped(fn, typechecker=beartype)


def _without_token(err: TypeCheckError, token: object) -> TypeCheckError:
    """The same error without the value of an argument `token`, which the checker would show."""
    return TypeCheckError(str(err).replace(repr(token), "'...'").replace(str(token), "..."))


def _without_checker(fn: Callable[P, R]) -> Callable[P, R]:
    """Strip the wrapper that jaxtyping's import hook adds, and no other: `torch.no_grad` must stay."""
    bare: Any = fn
    while hasattr(bare, "__wrapped__") and bare.__globals__.get("__name__", "").startswith("jaxtyping"):
        bare = bare.__wrapped__
    return bare


@runtime_checkable
class SupportsSparseLatents(Protocol):
    """What code below `kernels` may ask of sparse latents: the stored entries and the dense form."""

    @property
    def values(self) -> Float[Tensor, " nnz"]: ...

    @property
    def indices(self) -> Int[Tensor, " nnz"]: ...

    @property
    def row_ptr(self) -> Int[Tensor, " row"]: ...

    @property
    def n_latents(self) -> int: ...

    @property
    def n_rows(self) -> int: ...

    def to_dense(self) -> Float[Tensor, "batch latent"]: ...


@runtime_checkable
class SupportsHooks(Protocol):
    """The part of TransformerLens' hooked models that the library calls."""

    def run_with_hooks(self, *model_args: Any, **model_kwargs: Any) -> Any: ...

    def hooks(self, *args: Any, **kwargs: Any) -> Any: ...
