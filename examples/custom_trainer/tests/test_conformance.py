"""The package keeps the library's promises."""

from pathlib import Path
from typing import Any

import pytest
import torch
from custom_crosscoder import BlockTopK, ResamplingTrainer, SourceReconstruction
from torch import Tensor

from crosscoders import Callback, Crosscoder, CrosscoderConfig, Source, StepReport, Trainer, TrainerConfig
from crosscoders.losses import LossContext, Reconstruction
from crosscoders.testing import check_activation_fn, check_loss_term, check_trainer
from crosscoders.training import warm_start

SOURCES = (Source(name="base", d_model=6, scale=0.5), Source(name="distilled", d_model=4, scale=2.0))
TERM = SourceReconstruction(sources=("base", "distilled"), factors=(1.0, 2.5))


def make_crosscoder() -> Crosscoder:
    """A small crosscoder over two sources of different widths."""
    config = CrosscoderConfig(sources=SOURCES, n_latents=32, activation_fn=BlockTopK(n_blocks=4))
    return Crosscoder(config)


def make_trainer(cls: type[ResamplingTrainer] = ResamplingTrainer, **options: Any) -> ResamplingTrainer:
    """A trainer that resamples every third step."""
    numbers = {"lr": 1e-2, "dead_after_tokens": 100, "log_every_steps": 0, **options.pop("numbers", {})}
    return cls(
        make_crosscoder(),
        [TERM],
        config=TrainerConfig.from_dict(numbers),
        resample_every_steps=3,
        generator=torch.Generator().manual_seed(0),
        **options,
    )


def make_batches(n_steps: int = 12) -> list[Tensor]:
    """Sparse mixtures of 20 directions."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.rand(n_steps * 64, 20, generator=generator).pow(8)
    return list((codes @ torch.randn(20, 10, generator=generator)).split(64))


def test_the_activation_function_conforms() -> None:
    """All of `check_activation_fn` but compilation, which takes seconds."""
    check_activation_fn(BlockTopK(n_blocks=4, k_per_block=2), compile_backend=None)


def test_the_loss_term_conforms() -> None:
    """With dense latents, and with the sparse ones of BlockTopK."""
    check_loss_term(TERM)
    check_loss_term(TERM, crosscoder=make_crosscoder())


def test_the_trainer_conforms_and_resamples() -> None:
    """Including a resumed run that ends on the same bits, generator and all."""
    made: list[ResamplingTrainer] = []

    def make() -> ResamplingTrainer:
        made.append(make_trainer())
        return made[-1]

    check_trainer(make, make_batches())
    assert made[1].n_resampled > 0


class Forgetful(ResamplingTrainer):
    """Leaves the generator out of its checkpoints."""

    state_dict = Trainer.state_dict
    load_state_dict = Trainer.load_state_dict


def test_a_trainer_that_forgets_its_generator_is_seen() -> None:
    """So the check above is not empty."""
    with pytest.raises(AssertionError, match="a resumed run ends on other weights"):
        check_trainer(lambda: make_trainer(Forgetful), make_batches())


def test_every_block_gives_its_largest_latents() -> None:
    """Against a search by hand."""
    generator = torch.Generator().manual_seed(2)
    pre_acts, scale = torch.randn(50, 12, generator=generator), torch.rand(12, generator=generator) + 0.5
    latents = BlockTopK(n_blocks=3, k_per_block=2).build(12)(pre_acts, scale).to_dense()
    for row in range(50):
        for block in range(3):
            columns = range(4 * block, 4 * block + 4)
            ranked = sorted(columns, key=lambda j: float(pre_acts[row, j] * scale[j]), reverse=True)
            kept = {j for j in ranked[:2] if pre_acts[row, j] > 0}
            expected = [float(pre_acts[row, j]) if j in kept else 0.0 for j in columns]
            assert latents[row, columns].tolist() == expected


def test_equal_factors_are_the_plain_reconstruction() -> None:
    """And other sources are refused."""
    crosscoder, batch = make_crosscoder(), make_batches()[0]
    context = LossContext(progress=1.0, step=0, dead_mask=torch.zeros(32, dtype=torch.bool))
    equal = SourceReconstruction(sources=("base", "distilled"), factors=(1.0, 1.0))
    output = crosscoder(batch)
    expected = Reconstruction().value(output, crosscoder, context)
    torch.testing.assert_close(equal.value(output, crosscoder, context), expected)
    with pytest.raises(ValueError, match="the crosscoder has"):
        SourceReconstruction(sources=("a",), factors=(1.0,)).value(output, crosscoder, context)


def test_saved_and_loaded_it_computes_the_same(tmp_path: Path) -> None:
    """The artifact names the activation function by its kind; a warm start gives it other blocks."""
    trainer = make_trainer()
    trainer.fit(make_batches())
    trainer.crosscoder.save_pretrained(tmp_path / "saved", training_summary=trainer.summary())
    loaded = Crosscoder.from_pretrained(tmp_path / "saved")
    assert loaded.config.activation_fn == BlockTopK(n_blocks=4, k_per_block=1)
    x = make_batches()[0]
    assert torch.equal(loaded.reconstruct(x), trainer.crosscoder.reconstruct(x))
    warm = warm_start(tmp_path / "saved", activation_fn=BlockTopK(n_blocks=8, k_per_block=1))
    assert torch.equal(warm.W_dec, loaded.W_dec)


class Crash(Callback):
    """Ends the run between two checkpoints."""

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        """Raise at step 8."""
        if report.step == 8:
            raise KeyboardInterrupt


def test_an_interrupted_run_ends_on_the_same_bits(tmp_path: Path) -> None:
    """Through checkpoints on disk."""
    whole = make_trainer()
    whole.fit(make_batches())
    options = {"numbers": {"checkpoint_every_steps": 5}, "checkpoint_dir": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        make_trainer(callbacks=[Crash()], **options).fit(make_batches())
    resumed = make_trainer(**options)
    resumed.resume(tmp_path)
    resumed.fit(make_batches())
    for name, tensor in whole.crosscoder.state_dict().items():
        assert torch.equal(tensor, resumed.crosscoder.state_dict()[name])
    assert resumed.n_resampled == whole.n_resampled > 0
