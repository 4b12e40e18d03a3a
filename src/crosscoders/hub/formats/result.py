"""What reading a foreign file gives, and what its reader gives before sources have names and scales."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from jaxtyping import Float
from torch import Tensor

from crosscoders.activation_fns.base import ActivationFn
from crosscoders.crosscoder import Crosscoder
from crosscoders.sources import Source


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Foreign:
    """A crosscoder that was read from another library's file.

    Args:
        crosscoder: The crosscoder, in eval mode.
        format_name: Which format it was.
        notes: What a reader of results should know of it, such as a threshold that its file lacks.
    """

    crosscoder: Crosscoder
    format_name: str
    notes: tuple[str, ...] = ()


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """What the caller says of a foreign file besides its path.

    Args:
        sources: The sources in the file's order, or their names alone; None for the file's own.
        scale: Scale of each source, in order or by name; None where the file carries it.
        k: Latents per token, for a file that does not say.
    """

    sources: tuple[Source | str, ...] | None = None
    scale: Sequence[float | int] | Mapping[str, float | int] | None = None
    k: int | None = None


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """A foreign crosscoder in this library's layout.

    Args:
        W_enc: Encoder.
        b_enc: Encoder bias.
        W_dec: Decoder.
        b_dec: Decoder bias.
        activation_fn: Spec of its activation function.
        sources: Width of each source and what the files say of it; the scale is ignored.
        scale: Scale of each source; None if the files lack it.
        is_raw: Whether the weights already read and write raw activations.
        selection_weight: Weight by which the source's own rule ranks; None for the sum of the decoder norms.
        activation_state: Learned or calibrated tensors of the activation function.
        notes: What `Foreign.notes` should say.
    """

    W_enc: Float[Tensor, "latent width"]
    b_enc: Float[Tensor, " latent"]
    W_dec: Float[Tensor, "latent width"]
    b_dec: Float[Tensor, " width"]
    activation_fn: ActivationFn
    sources: tuple[Source, ...]
    scale: tuple[float, ...] | None
    is_raw: bool = False
    selection_weight: Float[Tensor, " latent"] | None = None
    activation_state: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
