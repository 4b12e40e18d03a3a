"""EleutherAI sparsify SAEs as crosscoders of one source: `cfg.json` and `sae.safetensors`.

encoder.weight [latent, d_model], encoder.bias [latent], W_dec [latent, d_model], b_dec [d_model].
The k largest of relu(encoder (x - b_dec) + bias) are kept. Activations are read as they are.
"""

import torch

from crosscoders.activation_fns.topk import TopK
from crosscoders.errors import CheckpointError
from crosscoders.hub.formats.files import ForeignFile
from crosscoders.hub.formats.numbers import RULE_NOTE, number_of_latents
from crosscoders.hub.formats.result import Given, Parts
from crosscoders.sources import Source

_KEYS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
_REFUSED = {
    "transcode": "it writes another place than it reads",
    "skip_connection": "its output has a linear part that passes no latent",
    "embed_skip": "its output has a part that reads the embedding",
    "gram_lookup": "it reads a table of n-grams",
    "signed": "its activations may be negative",
}


def matches(file: ForeignFile) -> bool:
    """Whether encoder and W_dec are matrices of the same shape."""
    encoder, decoder = file.shapes.get("encoder.weight", ()), file.shapes.get("W_dec", ())
    return len(encoder) == 2 and decoder == encoder


def read(file: ForeignFile, given: Given) -> Parts:
    """Translate the file."""
    _check_supported(file)
    file.check_known(*_KEYS)
    n_latents, d_model = file.shapes["encoder.weight"]
    file.check_config(d_in=d_model)
    encoder, b_dec = file.weight("encoder.weight"), file.weight("b_dec", d_model)
    b_enc = file.weight("encoder.bias", n_latents)
    return Parts(
        W_enc=encoder,
        b_enc=(b_enc.double() - encoder.double() @ b_dec.double()).to(b_enc.dtype),
        W_dec=file.weight("W_dec"),
        b_dec=b_dec,
        activation_fn=TopK(k=number_of_latents(file, given, file.config.get("k"))),
        sources=(Source(name="source", d_model=d_model),),
        scale=(1.0,),
        selection_weight=torch.ones_like(b_enc),
        notes=(RULE_NOTE.format(rule="the pre-activation alone"),),
    )


def _check_supported(file: ForeignFile) -> None:
    for name, reason in _REFUSED.items():
        if file.config.get(name) or ("skip" in name and any("skip" in key for key in file.shapes)):
            raise CheckpointError(f"{file.path}: {name} cannot be represented: {reason}.")
    activation = file.config.get("activation", "topk")
    if activation != "topk":
        raise CheckpointError(f"{file.path}: activation {activation!r} cannot be represented; only topk can.")
