"""Qwen2 (with Qwen2.5 and Qwen2.5-Math, which share its `model_type`) and Qwen3."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from crosscoders.models.adapters.base import Adapter
from crosscoders.models.adapters.gated_layer import HEAD_NORMS, LAYER_NORMS, gated_layer_parameters


def qwen2_parameters(config: Any) -> dict[str, tuple[int, ...]]:
    """A Qwen2 layer: biases on the query, key and value projections, none elsewhere, no query or key norm.

    Args:
        config: Hugging Face config, or the content of a config.json.
    """
    return gated_layer_parameters(config, biases=("q_proj", "k_proj", "v_proj"))


def qwen3_parameters(config: Any) -> dict[str, tuple[int, ...]]:
    """A Qwen3 layer: query and key norms per head; attention biases only if `attention_bias` says so.

    Args:
        config: Hugging Face config, or the content of a config.json.
    """
    return gated_layer_parameters(config, biases="attention_bias", has_head_norms=True)


@final
@dataclass(frozen=True, kw_only=True)
class Qwen2(Adapter):
    """Qwen2, Qwen2.5 and Qwen2.5-Math.

    Members differ in what the config says: Qwen2.5-Math has a context of 4,096; the small ones tie their
    embeddings; 14B and 32B have `rms_norm_eps` 1e-5 and 152,064 ids. All of it is checked as stated there.
    """

    family: ClassVar[str] = "qwen2"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2",)

    def layer_parameters(self, config: Any) -> dict[str, tuple[int, ...]]:
        """See `qwen2_parameters`."""
        return qwen2_parameters(config)

    def rms_norms(self, config: Any) -> tuple[str, ...]:
        """Both norms of the layer."""
        return LAYER_NORMS


@final
@dataclass(frozen=True, kw_only=True)
class Qwen3(Adapter):
    """Qwen3, dense. Its heads may be wider than `hidden_size / num_attention_heads` (`head_dim`)."""

    family: ClassVar[str] = "qwen3"
    model_types: ClassVar[tuple[str, ...]] = ("qwen3",)

    def layer_parameters(self, config: Any) -> dict[str, tuple[int, ...]]:
        """See `qwen3_parameters`."""
        return qwen3_parameters(config)

    def rms_norms(self, config: Any) -> tuple[str, ...]:
        """Both norms of the layer and the two per head."""
        return (*LAYER_NORMS, *HEAD_NORMS)
