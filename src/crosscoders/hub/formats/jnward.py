"""The concatenated layout, model A first: W_encoder_ZF [2 d_model, latent], W_decoder_FZ [latent, 2 d_model].

f = relu(pre); a batch keeps the k * batch largest f * |decoder row|, the row over both models. There is no
threshold for inference and no config; `k` may stand in the file.
"""

import torch

from crosscoders.activation_fns.batch_topk import BatchTopK
from crosscoders.errors import CheckpointError
from crosscoders.hub.formats.files import ForeignFile
from crosscoders.hub.formats.numbers import RULE_NOTE, number_of_latents, threshold_state
from crosscoders.hub.formats.result import Given, Parts
from crosscoders.sources import Source

_KEYS = ("W_encoder_ZF", "b_encoder_F", "W_decoder_FZ", "b_decoder_Z", "k")


def matches(file: ForeignFile) -> bool:
    """Whether there are this layout's two matrices."""
    encoder, decoder = file.shapes.get("W_encoder_ZF", ()), file.shapes.get("W_decoder_FZ", ())
    return len(encoder) == 2 and decoder == encoder[::-1]


def read(file: ForeignFile, given: Given) -> Parts:
    """Translate the file."""
    file.check_known(*_KEYS)
    width, n_latents = file.shapes["W_encoder_ZF"]
    if width % 2:
        raise CheckpointError(f"{file.path}: {width} columns cannot be two models of equal width.")
    W_dec = file.weight("W_decoder_FZ")
    stored = file.scalar("k") if "k" in file.shapes else file.extras.get("k")
    state, unset = threshold_state(file, None)
    return Parts(
        W_enc=file.weight("W_encoder_ZF").T,
        b_enc=file.weight("b_encoder_F", n_latents),
        W_dec=W_dec,
        b_dec=file.weight("b_decoder_Z", width),
        activation_fn=BatchTopK(k=number_of_latents(file, given, stored)),
        sources=tuple(Source(name=f"model_{i}", d_model=width // 2) for i in range(2)),
        scale=None,
        selection_weight=torch.linalg.vector_norm(W_dec, dim=1),
        activation_state=state,
        notes=(RULE_NOTE.format(rule="pre-activation times norm of the concatenated decoder row"), *unset),
    )
