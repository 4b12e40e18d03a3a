"""Llama 2, 3, 3.1 and what shares their `model_type`."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from crosscoders.models.adapters.base import Adapter
from crosscoders.models.adapters.gated_layer import LAYER_NORMS, gated_layer_parameters


def llama_parameters(config: Any) -> dict[str, tuple[int, ...]]:
    """A Llama layer: biases only where `attention_bias` or `mlp_bias` says so, no query or key norm.

    Args:
        config: Hugging Face config, or the content of a config.json.
    """
    return gated_layer_parameters(config, biases="attention_bias")


@final
@dataclass(frozen=True, kw_only=True)
class Llama(Adapter):
    """Llama."""

    family: ClassVar[str] = "llama"
    model_types: ClassVar[tuple[str, ...]] = ("llama",)

    def layer_parameters(self, config: Any) -> dict[str, tuple[int, ...]]:
        """See `llama_parameters`."""
        return llama_parameters(config)

    def rms_norms(self, config: Any) -> tuple[str, ...]:
        """Both norms of the layer."""
        return LAYER_NORMS
