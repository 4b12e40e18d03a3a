"""What fixes a crosscoder except its weights."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from crosscoders._io import check_field_types, check_keys
from crosscoders._typing import typed
from crosscoders.activation_fns.base import ActivationFn, activation_fn_from_dict
from crosscoders.sources import Source, check_sources
from crosscoders.structures.base import Structure, structure_from_dict


@final
@dataclass(frozen=True, kw_only=True)
class CrosscoderConfig:
    """Everything that fixes a crosscoder except its weights.

    Args:
        sources: What it reads and writes, in the order of the columns, each with its scale.
        n_latents: Number of latents.
        activation_fn: How pre-activations become latents.
        decoder_init_norm: Norm of each latent's decoder vector in each source at the start.
        is_folded: Whether the weights already contain the scales, so that they read raw activations.
        structure: What some latents are held to, such as decoder rows that all sources share; None for
            nothing, which is also what files say that were written before there were structures.

    Raises:
        ValueError: A number out of range, a name twice, or a structure that these sources cannot have.
    """

    sources: tuple[Source, ...]
    n_latents: int
    activation_fn: ActivationFn
    decoder_init_norm: float = 0.08
    is_folded: bool = False
    structure: Structure | None = None

    def __post_init__(self) -> None:
        check_sources(self.sources)
        if self.n_latents < 1:
            raise ValueError(f"CrosscoderConfig: n_latents must be at least 1, got {self.n_latents}.")
        if not self.decoder_init_norm > 0:
            raise ValueError(f"CrosscoderConfig needs decoder_init_norm > 0, got {self.decoder_init_norm}.")
        if self.structure is not None:
            self.structure.check(self.sources, n_latents=self.n_latents)

    def to_dict(self) -> dict[str, Any]:
        """The config as a JSON-ready dict, `structure` only if there is one; `from_dict` inverts it."""
        plain: dict[str, Any] = {
            "sources": [source.to_dict() for source in self.sources],
            "n_latents": self.n_latents,
            "activation_fn": self.activation_fn.to_dict(),
            "decoder_init_norm": self.decoder_init_norm,
            "is_folded": self.is_folded,
        }
        # Without one the files stay as they were before structures existed, for older versions to read.
        return plain if self.structure is None else {**plain, "structure": self.structure.to_dict()}

    @classmethod
    @typed
    def from_dict(cls, data: Mapping[str, Any]) -> "CrosscoderConfig":
        """Rebuild a config from `to_dict`.

        Args:
            data: One entry per field; `structure` may be missing.

        Raises:
            ValueError: A key is unknown or missing or a value of another type, here or in a part.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        check_keys("CrosscoderConfig", data, known=known, required=set(known) - {"structure"})
        check_field_types("CrosscoderConfig", data, cls)
        structure = data.get("structure")
        return cls(
            **{
                **data,
                "sources": tuple(Source.from_dict(source) for source in data["sources"]),
                "activation_fn": activation_fn_from_dict(data["activation_fn"]),
                "structure": None if structure is None else structure_from_dict(structure),
            }
        )
