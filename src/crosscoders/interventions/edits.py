"""What can be done to a latent's activation: add to it, scale it, clamp it, ablate it."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, final

from crosscoders._typing import typed


class Change(NamedTuple):
    """The change of an activation f, to `slope * f + offset`; `where_active` only where f is not 0."""

    slope: float
    offset: float
    where_active: bool


@dataclass(frozen=True)
class Edit(ABC):
    """A change of one latent's activation f to new = a f + b; h gets (new - f) d, d its raw direction.

    The edits are `Add`, `Scale`, `Clamp` and `Ablate`.
    """

    kind: ClassVar[str]
    needs_codes: ClassVar[bool] = True
    has_unit: ClassVar[bool] = False

    @abstractmethod
    def change(self, unit: float) -> Change:
        """What new - f is, as a function of f.

        Args:
            unit: What an amount of 1 is in units of the activation; only edits with `has_unit` read it.

        Returns:
            The change of an activation f.
        """

    def describe(self) -> dict[str, Any]:
        """The edit as JSON-ready facts."""
        return {"kind": self.kind, **vars(self)}


@final
@dataclass(frozen=True)
class Add(Edit):
    """new = f + strength: the same at every token, so no codes are needed.

    Args:
        strength: How much, in the hook's unit; negative pushes away.
    """

    kind: ClassVar[str] = "add"
    needs_codes: ClassVar[bool] = False
    has_unit: ClassVar[bool] = True
    strength: int | float

    def __post_init__(self) -> None:
        _check_finite("Add", "strength", self.strength)

    @typed
    def change(self, unit: float) -> Change:
        """A constant."""
        return Change(0.0, self.strength * unit, False)


@final
@dataclass(frozen=True)
class Scale(Edit):
    """new = factor f.

    Args:
        factor: 0 ablates, 1 changes nothing, -1 reverses.
    """

    kind: ClassVar[str] = "scale"
    factor: int | float

    def __post_init__(self) -> None:
        _check_finite("Scale", "factor", self.factor)

    @typed
    def change(self, unit: float) -> Change:
        """Proportional to f."""
        return Change(self.factor - 1.0, 0.0, False)


@final
@dataclass(frozen=True)
class Clamp(Edit):
    """new = value.

    Args:
        value: What the activation is set to, in the hook's unit.
        where_active: Leave the tokens alone at which the latent does not fire; otherwise every chosen
            position is set, whether or not it fires there.
    """

    kind: ClassVar[str] = "clamp"
    has_unit: ClassVar[bool] = True
    value: int | float
    where_active: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        _check_finite("Clamp", "value", self.value)

    @typed
    def change(self, unit: float) -> Change:
        """The value less what is there."""
        return Change(-1.0, self.value * unit, self.where_active)


@final
@dataclass(frozen=True)
class Ablate(Edit):
    """new = 0: the latent's contribution is taken out."""

    kind: ClassVar[str] = "ablate"

    @typed
    def change(self, unit: float) -> Change:
        """Everything that is there."""
        return Change(-1.0, 0.0, False)


def _check_finite(kind: str, name: str, value: int | float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{kind}: {name} is NaN or infinite, got {value}.")
