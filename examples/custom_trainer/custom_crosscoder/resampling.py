"""ResamplingTrainer: gives dead latents a new start on what is reconstructed worst."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crosscoders import Crosscoder, LossTerm, StepReport, Trainer


class ResamplingTrainer(Trainer):
    """A trainer that now and then resamples dead latents (Bricken et al. 2023, "Towards Monosemanticity").

    Every `resample_every_steps` steps each dead latent gets the direction of a token drawn with probability
    proportional to its squared error: the decoder row at the mean norm of the living ones, the encoder row at
    a fifth of theirs, bias zero, and fresh moments of the optimizer.

    Args:
        crosscoder: As in `Trainer`.
        objective: As in `Trainer`.
        resample_every_steps: Steps between two resamplings.
        generator: Source of the draws; its state is part of every checkpoint.
        options: The keyword arguments of `Trainer`.
    """

    def __init__(
        self,
        crosscoder: Crosscoder,
        objective: Sequence[LossTerm],
        *,
        resample_every_steps: int,
        generator: torch.Generator,
        **options: Any,
    ) -> None:
        super().__init__(crosscoder, objective, **options)
        if resample_every_steps < 1:
            raise ValueError(
                f"ResamplingTrainer: resample_every_steps must be at least 1, got {resample_every_steps}."
            )
        self.resample_every_steps = resample_every_steps
        self.generator = generator
        self.n_resampled = 0

    def training_step(self, batch: Tensor) -> StepReport:
        """One update, then the resampling if it is due (`super()` first)."""
        report = super().training_step(batch)
        if self.step % self.resample_every_steps == 0:
            self._resample(batch)
        return report

    def state_dict(self) -> dict[str, Any]:
        """What `Trainer` keeps (`super()` first), and everything that the next resampling depends on."""
        own = {"generator": self.generator.get_state(), "n_resampled": self.n_resampled}
        return {**super().state_dict(), "resampling": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave (`super()` first)."""
        super().load_state_dict(state)
        self.generator.set_state(state["resampling"]["generator"])
        self.n_resampled = state["resampling"]["n_resampled"]

    def summary(self) -> dict[str, Any]:
        """The facts of `Trainer`, and how many latents were resampled."""
        return {**super().summary(), "n_resampled": self.n_resampled}

    @torch.no_grad()
    def _resample(self, batch: Tensor) -> None:
        is_dead = self.dead_mask()
        n_dead = int(is_dead.sum())
        if n_dead in (0, is_dead.numel()):
            return
        crosscoder = self.crosscoder
        output = crosscoder(batch)
        errors = (output.inputs - output.reconstruction).square().sum(dim=1).double().cpu()
        drawn = torch.multinomial(errors, n_dead, replacement=True, generator=self.generator)
        directions = torch.nn.functional.normalize(output.inputs[drawn.to(batch.device)], dim=1)
        crosscoder.W_dec[is_dead] = directions * crosscoder.W_dec[~is_dead].norm(dim=1).mean()
        crosscoder.W_enc[is_dead] = directions * crosscoder.W_enc[~is_dead].norm(dim=1).mean() / 5
        crosscoder.b_enc[is_dead] = 0.0
        for parameter in (crosscoder.W_dec, crosscoder.W_enc, crosscoder.b_enc):
            for name in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[parameter][name][is_dead] = 0.0
        self.tokens_since_fired[is_dead] = 0
        self.n_resampled += n_dead
