"""What a structure is: a frozen spec of equations that some weights always fulfil.

A new one is one file: a frozen dataclass deriving from `Structure` with a `kind` and four methods. The
crosscoder does the rest: it imposes the structure on its initial weights, constrains every gradient that
reaches them, and refuses stored weights that break it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from crosscoders._specs import register_kind, spec_from_dict, spec_to_dict
from crosscoders._typing import typed
from crosscoders.sources import Source

Matrix = Literal["W_enc", "W_dec"]

_registry: dict[str, type["Structure"]] = {}


@dataclass(frozen=True, kw_only=True)
class Structure(ABC):
    """Spec of a structure: hashable, printable, JSON-ready. A subclass says the `kind` that files store.

    A structure must be linear and diagonal enough for any element-wise optimizer: weights that fulfil it,
    moved by gradients that `constrain_gradient` gave, fulfil it still.
    """

    kind: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        register_kind(_registry, cls, family="Structure")

    @abstractmethod
    def check(self, sources: Sequence[Source], *, n_latents: int) -> None:
        """Raise ValueError if a crosscoder of this shape cannot have the structure.

        Args:
            sources: Sources in the order of their columns.
            n_latents: Number of latents.
        """

    @abstractmethod
    def impose_(
        self, weight: Float[Tensor, "latent width"], *, matrix: Matrix, sources: Sequence[Source]
    ) -> None:
        """Move weights to the nearest ones that fulfil the structure, in place.

        Weights that fulfil it already stay as they are, to the last bit.

        Args:
            weight: Rows in normalized space.
            matrix: Which of both matrices they are.
            sources: Sources in the order of their columns.
        """

    @abstractmethod
    def constrain_gradient(
        self, grad: Float[Tensor, "latent width"], *, matrix: Matrix, sources: Sequence[Source]
    ) -> Float[Tensor, "latent width"]:
        """The gradient of the weights that are free, at every entry that follows them; `grad` stays as it is.

        Args:
            grad: Gradient as if every weight were free.
            matrix: Which of both matrices it belongs to.
            sources: Sources in the order of their columns.

        Returns:
            A new tensor; both matrices have one, and the optimizer sees nothing else.
        """

    @abstractmethod
    def broken_latent(
        self,
        weight: Float[Tensor, "latent width"],
        *,
        matrix: Matrix,
        sources: Sequence[Source],
        rtol: float = 0.0,
    ) -> int | None:
        """Index of the first latent that breaks the structure, or None.

        Args:
            weight: Rows in normalized space.
            matrix: Which of both matrices they are.
            sources: Sources in the order of their columns.
            rtol: Rounding to accept, relative to the largest entry of a latent's row.

        Returns:
            Index of the latent, or None where all hold.
        """

    def to_dict(self) -> dict[str, Any]:
        """The kind and the parameters, JSON-ready; `structure_from_dict` inverts it."""
        return spec_to_dict(self)


@typed
def structure_from_dict(data: Mapping[str, Any], *, fill_defaults: bool = False) -> Structure:
    """Rebuild a spec from `Structure.to_dict`.

    Args:
        data: The kind and every parameter.
        fill_defaults: Parameters left out take their defaults: for what people write, never for artifacts.

    Returns:
        The spec.

    Raises:
        ValueError: Unknown kind, unknown or missing parameters, or a value that the structure refuses.
    """
    return spec_from_dict(_registry, data, where="structure", fill_defaults=fill_defaults)


def check_count(where: str, *, n: int, n_latents: int) -> None:
    """Raise ValueError if a structure binds more latents than there are."""
    if n > n_latents:
        raise ValueError(f"{where} binds {n} latents, but the crosscoder has only {n_latents}.")
