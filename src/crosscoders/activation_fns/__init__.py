"""Activation functions, one file each; a new one needs no edit here."""

from crosscoders.activation_fns.base import ActivationFn, ActivationModule, activation_fn_from_dict
from crosscoders.activation_fns.batch_topk import BatchTopK
from crosscoders.activation_fns.jumprelu import JumpReLU
from crosscoders.activation_fns.relu import ReLU
from crosscoders.activation_fns.topk import TopK

__all__ = [
    "ActivationFn",
    "ActivationModule",
    "BatchTopK",
    "JumpReLU",
    "ReLU",
    "TopK",
    "activation_fn_from_dict",
]
