"""The per-token view: the right latents in the right order, their shares, and no markup from the text."""

import pytest
import torch
from torch.testing import assert_close

from crosscoders.activation_fns import TopK
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.harvest import ModelSources, load_sources
from crosscoders.report.inspection import inspect_text
from tests.data.toy_models import toy_model, toy_tokenizer

TEXT = "w5 w6 w7 w8"


@pytest.fixture
def sources() -> ModelSources:
    models = {"base": toy_model(seed=1), "distilled": toy_model(seed=2)}
    return load_sources(models, tokenizer=toy_tokenizer())


@pytest.fixture
def crosscoder(sources: ModelSources) -> Crosscoder:
    config = CrosscoderConfig(sources=sources.sources, n_latents=24, activation_fn=TopK(k=5))
    return Crosscoder(config)


def dense(latents) -> torch.Tensor:
    return latents if isinstance(latents, torch.Tensor) else latents.to_dense()


def test_shows_the_strongest_latents_of_each_token(crosscoder, sources):
    found = inspect_text(crosscoder, sources, text=TEXT, n_latents=3)
    rows = sources.harvest(torch.tensor([[5, 6, 7, 8]]))[0]
    expected = dense(crosscoder.eval().encode(rows))
    assert found.tokens == ("w5", "w6", "w7", "w8")
    for at, active in enumerate(found.active):
        top = expected[at].topk(3)
        assert [a.latent for a in active] == top.indices.tolist()
        assert_close(torch.tensor([a.activation for a in active]), top.values)
        assert found.l0[at] == int((expected[at] > 0).sum())


def test_shares_and_bias_add_up_to_the_pre_activation(crosscoder, sources):
    with torch.no_grad():
        crosscoder.b_enc.add_(0.25)
    rows = sources.harvest(torch.tensor([[5, 6, 7, 8]]))[0]
    pre_acts = crosscoder.pre_activations(rows).detach()
    for reader in (crosscoder, crosscoder.fold()):
        for at, active in enumerate(inspect_text(reader, sources, text=TEXT).active):
            for a in active:
                assert set(a.shares) == {"base", "distilled"}
                assert sum(a.shares.values()) + 0.25 == pytest.approx(float(pre_acts[at, a.latent]), abs=1e-4)


def test_the_notebook_view_escapes_what_the_text_holds(crosscoder, sources):
    tokenizer = toy_tokenizer()
    tokenizer.decode = lambda ids: "<script>alert('x')</script>\n\u202e"
    found = inspect_text(crosscoder, sources, text=TEXT, tokenizer=tokenizer)
    view = found._repr_html_()
    assert "<script>" not in view
    assert "\u202e" not in view
    assert "&lt;script&gt;" in view
    assert len(str(found).splitlines()) == 4


def test_leaves_the_mode_and_refuses_what_it_cannot_read(crosscoder, sources):
    crosscoder.train()
    inspect_text(crosscoder, sources, text=TEXT)
    assert crosscoder.training
    with pytest.raises(ValueError, match="has no tokens"):
        inspect_text(crosscoder, sources, text="")
    with pytest.raises(ValueError, match="n_latents must be at least 1"):
        inspect_text(crosscoder, sources, text=TEXT, n_latents=0)
    bare = load_sources({"base": toy_model(seed=1), "distilled": toy_model(seed=2)})
    with pytest.raises(ValueError, match="no tokenizer"):
        inspect_text(crosscoder, bare, text=TEXT)
