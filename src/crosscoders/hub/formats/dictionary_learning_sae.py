"""The BatchTopK SAE of science-of-finetuning/dictionary_learning, as a crosscoder of one source.

encoder.weight [latent, d_model], decoder.weight [d_model, latent], b_dec [d_model].
f = relu(W_enc (x_norm - b_dec) + b_enc), kept where f > threshold; x_norm_hat = W_dec f + b_dec.
"""

import torch

from crosscoders.activation_fns.batch_topk import BatchTopK
from crosscoders.hub.formats.dl_normalizer import KEYS as NORMALIZER_KEYS
from crosscoders.hub.formats.dl_normalizer import read_normalizer
from crosscoders.hub.formats.files import ForeignFile
from crosscoders.hub.formats.numbers import RULE_NOTE, number_of_latents, threshold_state
from crosscoders.hub.formats.result import Given, Parts
from crosscoders.sources import Source

_KEYS = ("encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "k", "threshold")


def matches(file: ForeignFile) -> bool:
    """Whether encoder and decoder are matrices and there is a threshold with its k."""
    encoder, decoder = file.shapes.get("encoder.weight", ()), file.shapes.get("decoder.weight", ())
    return len(encoder) == 2 and decoder == encoder[::-1] and {"b_dec", "k", "threshold"} <= set(file.shapes)


def read(file: ForeignFile, given: Given) -> Parts:
    """Translate the file."""
    file.check_known(*_KEYS, *NORMALIZER_KEYS)
    n_latents, d_model = file.shapes["encoder.weight"]
    file.check_config(activation_dim=d_model, dict_size=n_latents)
    encoder, decoder = file.weight("encoder.weight"), file.weight("decoder.weight").T
    b_dec = file.weight("b_dec", d_model)
    b_enc = file.weight("encoder.bias", n_latents)
    b_enc = (b_enc.double() - encoder.double() @ b_dec.double()).to(b_enc.dtype)
    normalizer = read_normalizer(file, 1, d_model)
    if normalizer is not None:
        folded, b_enc = normalizer.fold_encoder(encoder[:, None], b_enc)
        encoder = folded[:, 0]
        raw, bias = normalizer.fold_decoder(decoder[:, None], b_dec[None])
        decoder, b_dec = raw[:, 0], bias[0]
    state, unset = threshold_state(file, file.scalar("threshold"))
    return Parts(
        W_enc=encoder,
        b_enc=b_enc,
        W_dec=decoder,
        b_dec=b_dec,
        activation_fn=BatchTopK(k=number_of_latents(file, given, file.scalar("k"))),
        sources=(Source(name="source", d_model=d_model),),
        scale=normalizer.scale if normalizer else (1.0,),
        is_raw=normalizer is not None,
        selection_weight=torch.ones_like(b_enc),
        activation_state=state,
        notes=(
            RULE_NOTE.format(rule="the pre-activation alone"),
            *unset,
            *(normalizer.notes if normalizer else ()),
        ),
    )
