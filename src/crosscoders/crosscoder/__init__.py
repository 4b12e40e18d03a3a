"""The crosscoder: its config, and encoder and decoder over the flat width with the scales inside."""

from crosscoders.crosscoder.config import CrosscoderConfig
from crosscoders.crosscoder.module import Crosscoder
from crosscoders.crosscoder.output import CrosscoderOutput

__all__ = ["Crosscoder", "CrosscoderConfig", "CrosscoderOutput"]
