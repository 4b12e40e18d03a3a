"""The format of ckkissane/crosscoder-model-diff-replication and its relatives.

W_enc [source, d_model, latent], W_dec [latent, source, d_model], b_enc [latent], b_dec [source, d_model]; the
source axis holds models, or the layers of one model. The factors sqrt(d_model) / mean norm by which
activations are scaled are not in the files. f = relu(sum_m W_enc[m]^T x_m + b_enc).
"""

from torch import Tensor

from crosscoders.activation_fns.base import ActivationFn
from crosscoders.activation_fns.batch_topk import BatchTopK
from crosscoders.activation_fns.relu import ReLU
from crosscoders.errors import CheckpointError
from crosscoders.hub.formats.files import ForeignFile
from crosscoders.hub.formats.numbers import number_of_latents, threshold_state
from crosscoders.hub.formats.result import Given, Parts
from crosscoders.sources import Source

_KEYS = ("W_enc", "W_dec", "b_enc", "b_dec")


def matches(file: ForeignFile) -> bool:
    """Whether encoder and decoder have three axes, in this format's order, and no masks."""
    return has_source_axis(file) and not {"enc_mask", "dec_mask"} & set(file.shapes)


def has_source_axis(file: ForeignFile) -> bool:
    """Whether W_enc is [source, d_model, latent] and W_dec [latent, source, d_model]."""
    encoder, decoder = file.shapes.get("W_enc", ()), file.shapes.get("W_dec", ())
    return len(encoder) == 3 and decoder == (encoder[2], encoder[0], encoder[1])


def read(file: ForeignFile, given: Given) -> Parts:
    """Translate the file."""
    file.check_known(*_KEYS)
    n_sources, d_model, n_latents = file.shapes["W_enc"]
    file.check_config(d_in=d_model, dict_size=n_latents, n_models=n_sources, n_layers=n_sources)
    activation_fn, state, notes = _activation(file, given)
    return Parts(
        W_enc=file.weight("W_enc").permute(2, 0, 1).flatten(1),
        b_enc=file.weight("b_enc", n_latents),
        W_dec=file.weight("W_dec").flatten(1),
        b_dec=file.weight("b_dec", n_sources, d_model).flatten(),
        activation_fn=activation_fn,
        sources=_sources(file, n_sources, d_model),
        scale=None,
        activation_state=state,
        notes=notes,
    )


def _activation(file: ForeignFile, given: Given) -> tuple[ActivationFn, dict[str, Tensor], tuple[str, ...]]:
    kind = file.config.get("sparsity_type", "l1")
    if kind in ("l1", "relu"):
        return ReLU(), {}, ()
    if kind != "batch_top_k":
        raise CheckpointError(
            f"{file.path}: sparsity_type {kind!r} is unknown; known are l1 and batch_top_k."
        )
    k = number_of_latents(file, given, file.config.get("k_sparsity"))
    ranking = (
        "The files do not say how training ranked latents; by pre-activation times sum of decoder norms."
    )
    state, unset = threshold_state(file, None)
    return BatchTopK(k=k), state, (*unset, ranking)


def _sources(file: ForeignFile, n_sources: int, d_model: int) -> tuple[Source, ...]:
    axis = "layer" if "n_layers" in file.config else "model"
    models = [file.text(f"model_name_{letter}") for letter in "AB"] if n_sources == 2 else []
    hook_name = "" if axis == "layer" else file.text("hook_point")
    return tuple(
        Source(
            name=f"{axis}_{i}",
            d_model=d_model,
            hook_name=hook_name,
            model_id=models[i] if models else "",
        )
        for i in range(n_sources)
    )
