"""Sums of every patch of the causal check over batches, and the scores that follow from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from crosscoders.bootstrap import Estimate, bootstrap_counts
from crosscoders.diffing.causal.edits import CONTROL_KINDS, NO_PATCH, TRUE_DIFFERENCE, Edit, Patch
from crosscoders.diffing.causal.result import (
    CausalCheck,
    ControlScore,
    PatchScore,
    SetScore,
    clustered_ratio,
)

_N_RESAMPLES = 1000
# (group, name, draw): ("anchor", name, 0), ("set", name, 0), or (kind of control, name of the set, draw).
PatchKey = tuple[str, str, int]


@dataclass
class _Sum:
    """What is summed of one patch: KL by sequence, edit norms, tokens to scale and those that cannot be."""

    kl: Tensor
    norm: float = 0.0
    n_wanted: int = 0
    n_unscalable: int = 0


class PatchSums:
    """Sums of every patch as batches come in, and what follows from them."""

    def __init__(self, patches: Mapping[PatchKey, Patch], *, n_sequences: int) -> None:
        self.patches = patches
        self._sums = {key: _Sum(kl=torch.zeros(n_sequences, dtype=torch.float64)) for key in patches}

    def add(self, key: PatchKey, edit: Edit, *, kl: Tensor, sequence: Tensor) -> None:
        """Add a batch.

        Args:
            key: Of which patch.
            edit: What it added.
            kl: KL at every counted token.
            sequence: Row of each of these tokens.
        """
        found = self._sums[key]
        found.kl.index_add_(0, sequence, kl)
        found.norm += float(edit.added.double().norm(dim=1).sum())
        found.n_wanted += edit.n_wanted
        found.n_unscalable += edit.n_unscalable

    def result(
        self,
        pair: tuple[str, str],
        sets: Mapping[str, Tensor],
        counted: Tensor,
        *,
        n_draws: int,
        generator: torch.Generator,
    ) -> CausalCheck:
        """Scores of everything summed.

        Args:
            pair: Names of the two sources.
            sets: The sets by name.
            counted: Positions counted [sequence pos].
            n_draws: Draws of each control.
            generator: Draws the resamples.
        """
        n_tokens = counted.sum(dim=1).cpu()
        self._read = n_tokens > 0
        self._n_tokens = n_tokens[self._read].double()
        self._counts = bootstrap_counts(len(self._n_tokens), n_bootstrap=_N_RESAMPLES, generator=generator)
        kinds = CONTROL_KINDS if n_draws else ()
        return CausalCheck(
            pair=pair,
            n_tokens=int(n_tokens.sum()),
            n_sequences=len(self._n_tokens),
            anchors={key[1]: self._score(key) for key in self.patches if key[0] == "anchor"},
            sets={
                name: SetScore(
                    latents=tuple(latents.tolist()),
                    score=self._score(("set", name, 0)),
                    controls={kind: self._control(kind, name, n_draws) for kind in kinds},
                )
                for name, latents in sets.items()
            },
        )

    def _kl(self, key: PatchKey) -> Tensor:
        return self._sums[key].kl[self._read]

    def _size(self, key: PatchKey) -> float:
        true = self._sums["anchor", TRUE_DIFFERENCE, 0].norm
        return self._sums[key].norm / true if true else math.nan

    def _share(self, gained: Tensor) -> Estimate:
        """A gain in KL over that of the first model's activation, both summed by sequence."""
        return clustered_ratio(gained, self._kl(("anchor", NO_PATCH, 0)), counts=self._counts)

    def _score(self, key: PatchKey) -> PatchScore:
        whole = self._kl(("anchor", NO_PATCH, 0))
        return PatchScore(
            kl=clustered_ratio(self._kl(key), self._n_tokens, counts=self._counts),
            share_closed=self._share(whole - self._kl(key)),
            relative_size=self._size(key),
        )

    def _control(self, kind: str, name: str, n_draws: int) -> ControlScore:
        keys: list[PatchKey] = [(kind, name, at) for at in range(n_draws)]
        whole = self._kl(("anchor", NO_PATCH, 0))
        mean = torch.stack([self._kl(key) for key in keys]).mean(dim=0)
        n_wanted, n_unscalable = (
            sum(getattr(self._sums[key], which) for key in keys) for which in ("n_wanted", "n_unscalable")
        )
        return ControlScore(
            share_closed=tuple(self._share(whole - self._kl(key)).mean for key in keys),
            relative_size=tuple(self._size(key) for key in keys),
            unscalable=n_unscalable / n_wanted if n_wanted else math.nan,
            advantage=self._share(mean - self._kl(("set", name, 0))),
        )
