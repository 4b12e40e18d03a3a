"""How crosscoders are trained: the standard recipe of all scores, and the architectures compared."""

from dataclasses import dataclass

from crosscoders.activation_fns import ActivationFn, BatchTopK, JumpReLU, ReLU
from crosscoders.losses import (
    AuxK,
    DecoderNormL1,
    DifferenceReconstruction,
    JumpReLUL0,
    LossTerm,
    Reconstruction,
    SharedDecoderNormL1,
)
from crosscoders.structures import DedicatedLatents, SharedLatents, Structure

BATCH_TOPK = BatchTopK(k=9, k_initial=64, anneal_fraction=0.3)  # about 8.4 planted features are on
REVIVED: tuple[LossTerm, ...] = (Reconstruction(), AuxK(weight=1.0, k_aux=80))
# L0 13 and explained variance 0.74 at 3, L0 22 and 0.92 at 1: no weight reaches both 8.4 and a good fit.
L1_WEIGHT = 2.0  # swept on seed 0 of equal widths, 400,000 tokens, 2026-11
N_SHARED = 288  # as many as there are shared features
N_DEDICATED = (64, 64)  # as many as there are exclusive and re-used features of each source


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a crosscoder is trained.

    Args:
        name: Shown in tables and file names.
        activation_fn: Its activation function.
        objective: Its loss terms.
        structure: Its structure, if it has one.
        of_difference: Whether it is a sparse autoencoder of the difference of both sources.
        n_latents: Its latents.
        lr: Peak learning rate.
        dead_after_tokens: A latent silent for this long is dead.
    """

    name: str
    activation_fn: ActivationFn = BATCH_TOPK
    objective: tuple[LossTerm, ...] = REVIVED
    structure: Structure | None = None
    of_difference: bool = False
    n_latents: int = 768
    lr: float = 5e-3
    dead_after_tokens: int = 20_000


STANDARD = Recipe(name="BatchTopK")
DIFFERENCE_SAE = Recipe(
    name="difference SAE",
    activation_fn=BatchTopK(k=6, k_initial=64, anneal_fraction=0.3),  # about 5.9 features of the difference
    of_difference=True,
)
ARCHITECTURES = (
    STANDARD,
    Recipe(
        name="L1",
        activation_fn=ReLU(),
        objective=(Reconstruction(), DecoderNormL1(weight=L1_WEIGHT, warmup_fraction=0.2)),
    ),
    Recipe(
        name="JumpReLU",
        activation_fn=JumpReLU(),
        objective=(Reconstruction(), JumpReLUL0(weight=1.0, warmup_fraction=0.3)),
    ),
    Recipe(name="shared latents", structure=SharedLatents(n_shared=N_SHARED)),
    Recipe(
        name="shared latents, L1",
        activation_fn=ReLU(),
        objective=(
            Reconstruction(),
            SharedDecoderNormL1(weight=L1_WEIGHT, warmup_fraction=0.2, n_shared=N_SHARED),
        ),
        structure=SharedLatents(n_shared=N_SHARED),
    ),
    Recipe(name="dedicated latents", structure=DedicatedLatents(n_per_source=N_DEDICATED)),
    Recipe(name="difference-weighted", objective=(*REVIVED, DifferenceReconstruction(weight=1.0))),
    DIFFERENCE_SAE,
)
