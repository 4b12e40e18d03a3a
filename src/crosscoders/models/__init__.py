"""Language models read and edited at named hooks, their tokens, and generation."""

from crosscoders.models.base import LanguageModel
from crosscoders.models.generate import generate
from crosscoders.models.load import load_model
from crosscoders.models.tokens import (
    changed_ids,
    check_tokenizers,
    pack_tokens,
    read_texts,
    tokenize_texts,
    tokenizer_fingerprint,
)
from crosscoders.models.trace import TokenTrace

__all__ = [
    "LanguageModel",
    "TokenTrace",
    "changed_ids",
    "check_tokenizers",
    "generate",
    "load_model",
    "pack_tokens",
    "read_texts",
    "tokenize_texts",
    "tokenizer_fingerprint",
]
