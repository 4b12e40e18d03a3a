"""Any decoder-only model whose layers can be found, or that TransformerLens can bridge."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from crosscoders._typing import typed
from crosscoders.models.adapters.base import Adapter, known_families


@final
@dataclass(frozen=True, kw_only=True)
class Generic(Adapter):
    """A model of no known family: nothing is expected of its layers' parameters.

    Its embedding, its hooks and its hidden states are checked like any other's.
    """

    family: ClassVar[str] = "generic"

    @classmethod
    @typed
    def recognize(cls, config: Any, *, model_id: str = "", tokenizer: Any = None) -> tuple[str, ...]:
        """Never any evidence: it is taken where no other adapter has some."""
        return ()

    def layer_parameters(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Nothing is known."""
        return {}

    def rms_norms(self, config: Any) -> tuple[str, ...]:
        """Nothing is known."""
        return ()

    def __repr__(self) -> str:
        families = ", ".join(known_families())
        return f"Generic() (families with an adapter of their own: {families})"
