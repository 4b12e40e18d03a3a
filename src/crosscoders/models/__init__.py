"""Language models read and edited at named hooks, their tokens, and generation."""

from crosscoders.models.base import LanguageModel
from crosscoders.models.chat import check_chat_template, render_chat
from crosscoders.models.generate import generate
from crosscoders.models.id_policy import IdPolicy, IdRule, resolve_policy
from crosscoders.models.load import load_model
from crosscoders.models.records import openthoughts_messages, read_texts, stream_texts
from crosscoders.models.round_trip import check_round_trip, round_trip_loss
from crosscoders.models.tokens import (
    changed_ids,
    check_tokenizers,
    pack_tokens,
    stream_tokens,
    tokenize_texts,
    tokenizer_fingerprint,
)
from crosscoders.models.trace import TokenTrace

__all__ = [
    "IdPolicy",
    "IdRule",
    "LanguageModel",
    "TokenTrace",
    "changed_ids",
    "check_chat_template",
    "check_round_trip",
    "check_tokenizers",
    "generate",
    "load_model",
    "openthoughts_messages",
    "pack_tokens",
    "read_texts",
    "render_chat",
    "resolve_policy",
    "round_trip_loss",
    "stream_texts",
    "stream_tokens",
    "tokenize_texts",
    "tokenizer_fingerprint",
]
