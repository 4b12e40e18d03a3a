"""Conformance checks for your own activation functions, loss terms, trainers and model adapters.

Call them from a test. Each raises AssertionError naming the property that fails.
"""

from crosscoders.testing.activation_fn import check_activation_fn
from crosscoders.testing.adapter import check_adapter
from crosscoders.testing.loss_term import check_loss_term
from crosscoders.testing.trainer import check_trainer

__all__ = ["check_activation_fn", "check_adapter", "check_loss_term", "check_trainer"]
