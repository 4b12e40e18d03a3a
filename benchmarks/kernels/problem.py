"""What is measured: shapes, cases, and what a process is told about them."""

import dataclasses
from dataclasses import dataclass
from typing import Any

LR = 1e-4
BETAS = (0.9, 0.999)
EPS = 1e-8
AUXK_WEIGHT = 1 / 32
DEAD_AFTER_BATCHES = 4


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a training step: sources of equal width, latents, tokens in a batch, latents per token."""

    n_sources: int = 2
    d_model: int
    n_latents: int
    batch: int
    k: int

    @property
    def width(self) -> int:
        """Columns over all sources."""
        return self.n_sources * self.d_model

    @property
    def n_params(self) -> int:
        """Encoder, decoder and their biases."""
        return 2 * self.n_latents * self.width + self.n_latents + self.width

    @property
    def label(self) -> str:
        """The sizes as the CSV files write them."""
        return f"S={self.n_sources} d={self.d_model} F={self.n_latents} B={self.batch} k={self.k}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What the step computes besides reconstruction."""

    activation: str = "topk"
    auxk: bool = False
    max_grad_norm: float | None = None

    @property
    def label(self) -> str:
        """The case as the CSV files write it."""
        clip = "" if self.max_grad_norm is None else f"+clip{self.max_grad_norm:g}"
        return f"{self.activation}{'+auxk' if self.auxk else ''}{clip}"


TOPK = Case()
BATCH_TOPK = Case(activation="batch_topk", auxk=True, max_grad_norm=1.0)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """In what an implementation's function may differ from ours; the gate computes each in float64.

    Args:
        selection: Decoder norm by which latents rank: "sum" over sources (ours), "joint" over the width,
            "per_source" (each source selects for itself), "none".
        pre_bias: Whether the encoder reads x - b_dec.
        auxk: Whether AuxK is in the loss where the case has it.
    """

    selection: str = "sum"
    pre_bias: bool = False
    auxk: bool = True

    def differs_in(self, case: Case) -> str:
        """In words; empty for our function."""
        texts = {
            "sum": [],
            "none": ["ranks by pre-activation"],
            "joint": ["ranks by the joint decoder norm"],
            "per_source": ["each source ranks by its own decoder norm"],
        }[self.selection]
        if self.pre_bias:
            texts.append("encoder reads x - b_dec")
        if case.auxk and not self.auxk:
            texts.append("no AuxK")
        return "; ".join(texts)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Everything that a process needs besides the data."""

    shape: Shape
    case: Case = TOPK
    precision: str = "float32"
    device: str = "cpu"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` inverts it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Problem":
        """Rebuild from `to_dict`."""
        return cls(**{**data, "shape": Shape(**data["shape"]), "case": Case(**data["case"])})

    @property
    def dead_after_tokens(self) -> int:
        """Tokens of silence after which a latent counts as dead."""
        return DEAD_AFTER_BATCHES * self.shape.batch

    @property
    def k_aux(self) -> int:
        """Dead latents per token in AuxK: our default."""
        return max(1, min(self.shape.width // 2, self.shape.n_latents))
