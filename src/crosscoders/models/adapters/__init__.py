"""What each family of models is expected to be, and the check of a loaded model against it."""

from crosscoders.models.adapters.base import Adapter, adapter_for, adapter_for_config, known_families
from crosscoders.models.adapters.generic import Generic
from crosscoders.models.adapters.llama import Llama
from crosscoders.models.adapters.qwen import Qwen2, Qwen3
from crosscoders.models.adapters.r1_distill import R1DistillLlama, R1DistillQwen, R1Qwen3
from crosscoders.models.adapters.validation import validate_model
from crosscoders.models.context import check_context, context_warning, exceeds_context

__all__ = [
    "Adapter",
    "Generic",
    "Llama",
    "Qwen2",
    "Qwen3",
    "R1DistillLlama",
    "R1DistillQwen",
    "R1Qwen3",
    "adapter_for",
    "adapter_for_config",
    "check_context",
    "context_warning",
    "exceeds_context",
    "known_families",
    "validate_model",
]
