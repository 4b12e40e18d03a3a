"""Three sources, three widths, several layers of one model: trained, stored, read back and measured."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from crosscoders.activation_fns import ActivationFn, BatchTopK, ReLU
from crosscoders.buffer import ActivationBuffer
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.evaluation import evaluate
from crosscoders.harvest import load_sources
from crosscoders.latents import TokenBatch, tabulate_latents
from crosscoders.losses import AuxK, DecoderNormL1, Reconstruction
from crosscoders.metrics import decoder_norm_share
from crosscoders.sources import Source
from crosscoders.structures import DedicatedLatents, SharedLatents, Structure
from crosscoders.training import Trainer, TrainerConfig
from tests.core.held import UNEQUAL, held_rows
from tests.core.toy import kind_of
from tests.data.toy_models import random_tokens, toy_model
from tests.training.toy_run import same_bits, weights

Sources = tuple[Source, ...]


def trained_and_reloaded(
    sources: Sources,
    batches: list[Tensor] | ActivationBuffer,
    folder: Path,
    *,
    activation_fn: ActivationFn,
    structure: Structure | None = None,
) -> Crosscoder:
    config = CrosscoderConfig(sources=sources, n_latents=48, activation_fn=activation_fn, structure=structure)
    crosscoder = Crosscoder(config)
    sparsity = DecoderNormL1(weight=0.05) if activation_fn == ReLU() else AuxK()
    numbers = TrainerConfig(lr=1e-2, log_every_steps=0, calibration_batches=4)
    Trainer(crosscoder, [Reconstruction(), sparsity], config=numbers).fit(batches)
    crosscoder.save_pretrained(folder / "crosscoder")
    loaded = Crosscoder.from_pretrained(folder / "crosscoder")
    assert loaded.config == config
    stored = {**weights(crosscoder), "selection_weight": crosscoder.selection_scale().detach()}
    assert same_bits(weights(loaded), stored)
    return loaded


def assert_measured(crosscoder: Crosscoder, rows: Tensor, *, least: float) -> None:
    """Explained variance of each source by float64 sums, and the table of latents, folded or not."""
    with torch.no_grad():
        residual = (rows - crosscoder.reconstruct(rows)).double()
    centered = rows.double() - rows.double().mean(dim=0)
    figures = evaluate(crosscoder, rows.split(100))
    start = 0
    for source in crosscoder.sources:
        part = slice(start, start + source.d_model)
        start += source.d_model
        expected = 1 - residual[:, part].square().sum() / centered[:, part].square().sum()
        assert figures[f"ev/{source.name}"] == pytest.approx(float(expected), rel=1e-6)
        assert expected > least, source.name
    assert "ev/difference" not in figures
    none = torch.zeros(len(rows), dtype=torch.int64)
    table, folded = (
        tabulate_latents(c, [TokenBatch(rows=rows, token_ids=none, origin=none)])
        for c in (crosscoder, crosscoder.fold())
    )
    norms = torch.stack([table[f"norm_l2/{source.name}"] for source in crosscoder.sources], dim=1)
    torch.testing.assert_close(decoder_norm_share(norms).sum(dim=1), torch.ones(48, dtype=torch.float64))
    assert torch.equal(table["frequency"], folded["frequency"])
    assert table["frequency"].any()


@pytest.mark.parametrize("activation_fn", [ReLU(), BatchTopK(k=6)], ids=kind_of)
@pytest.mark.parametrize("structure", [None, DedicatedLatents(n_per_source=(2, 3, 4))], ids=["free", "held"])
def test_three_sources_of_three_widths(
    activation_fn: ActivationFn, structure: Structure | None, tmp_path: Path
) -> None:
    batches = list(held_rows(64 * 100, UNEQUAL, seed=2).split(64))
    crosscoder = trained_and_reloaded(
        UNEQUAL, batches, tmp_path, activation_fn=activation_fn, structure=structure
    )
    assert_measured(crosscoder, held_rows(500, UNEQUAL, seed=3), least=0.5)
    if structure is not None:
        share = decoder_norm_share(crosscoder.decoder_norms())[:9]
        assert torch.equal(share, torch.eye(3).repeat_interleave(torch.tensor([2, 3, 4]), dim=0))


@pytest.mark.parametrize("structure", [None, SharedLatents(n_shared=8)], ids=["free", "tied"])
def test_several_layers_of_one_model_at_once(structure: Structure | None, tmp_path: Path) -> None:
    hooks = {f"layer {at}": f"blocks.{at}.hook_resid_post" for at in range(3)}
    model = toy_model(n_layers=4, d_model=16)
    sources = load_sources(dict.fromkeys(hooks, model), hook_name=hooks)
    tokens = [random_tokens(8, 16, seed=seed) for seed in range(12)]
    buffer = ActivationBuffer(
        sources, tokens, max_bytes=1 << 20, batch_tokens=64, dtype=torch.float32, epochs=5,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    crosscoder = trained_and_reloaded(
        buffer.sources, buffer, tmp_path, activation_fn=BatchTopK(k=8), structure=structure
    )
    assert [source.hook_name for source in crosscoder.sources] == list(hooks.values())
    held_out = sources.harvest(random_tokens(16, 16, seed=99)).flatten(0, 1)
    assert_measured(crosscoder, held_out, least=0.3)
