"""The logit lens of every latent, against the readout row by row, whole and in chunks."""

import torch
from torch import nn

from crosscoders.harvest import ModelSources
from crosscoders.models.unembedding import logit_readout
from crosscoders.pipeline.report.lens import logit_lens
from crosscoders.pipeline.report.names import name_tokens
from tests.data.toy_models import N_VOCAB, toy_tokenizer
from tests.pipeline.report_cases import toy_crosscoder, toy_sources


def without_unembedding(sources: ModelSources, *names: str) -> ModelSources:
    for name in names:
        lm: nn.Module = sources.models[name].causal_lm
        lm.get_output_embeddings = lambda: None
    return sources


def test_the_lens_names_the_largest_and_smallest_changes_of_each_latent() -> None:
    sources = toy_sources()
    crosscoder = toy_crosscoder(sources)
    for max_bytes in (1, 10**9):
        lens, notes = logit_lens(crosscoder, sources, n=3, max_bytes=max_bytes)
        assert notes == ()
        assert lens is not None
        for at, source in enumerate(crosscoder.sources):
            readout = logit_readout(sources.models[source.name]).double()
            for latent in range(crosscoder.n_latents):
                change = readout @ crosscoder.steering_direction(latent, source.name).double()
                order = torch.argsort(change).tolist()
                most = order[: N_VOCAB - 4 : -1]
                assert lens.top[latent, at].tolist() == most
                assert lens.bottom[latent, at].tolist() == order[:3]
                torch.testing.assert_close(
                    lens.top_value[latent, at].double(),
                    change[order[: N_VOCAB - 4 : -1]],
                    rtol=1e-4,
                    atol=1e-6,
                )
                torch.testing.assert_close(
                    lens.bottom_value[latent, at].double(), change[order[:3]], rtol=1e-4, atol=1e-6
                )


def test_folding_does_not_change_the_lens() -> None:
    sources = toy_sources()
    crosscoder = toy_crosscoder(sources)
    plain, _ = logit_lens(crosscoder, sources, n=5, max_bytes=2**20)
    folded, _ = logit_lens(crosscoder.fold(), sources, n=5, max_bytes=2**20)
    assert plain is not None
    assert folded is not None
    torch.testing.assert_close(plain.top_value, folded.top_value)
    assert torch.equal(plain.top, folded.top)


def test_a_model_without_an_unembedding_has_no_lens_and_the_note_says_why() -> None:
    sources = without_unembedding(toy_sources(), "distilled")
    lens, notes = logit_lens(toy_crosscoder(sources), sources, n=3, max_bytes=2**20)
    assert lens is not None
    assert bool(lens.top_value[:, 1].isnan().all())
    assert not bool(lens.top_value[:, 0].isnan().any())
    assert len(notes) == 1
    assert notes[0].startswith("No logit lens in distilled: ")
    assert "no unembedding" in notes[0]


def test_no_model_with_an_unembedding_gives_no_lens() -> None:
    sources = without_unembedding(toy_sources(), "base", "distilled")
    lens, notes = logit_lens(toy_crosscoder(sources), sources, n=3, max_bytes=2**20)
    assert lens is None
    assert len(notes) == 2


def test_a_small_vocabulary_is_named_whole() -> None:
    sources = toy_sources()
    lens, _ = logit_lens(toy_crosscoder(sources), sources, n=100, max_bytes=2**20)
    assert lens is not None
    assert lens.top.shape == (24, 2, N_VOCAB)
    assert torch.equal(lens.top.flip(2), lens.bottom)


def test_ids_are_named_as_the_model_that_the_lens_looks_through_means_them() -> None:
    sources = toy_sources()
    sources.models["base"].tokenizer = toy_tokenizer()
    sources.models["distilled"].tokenizer = own = toy_tokenizer(swapped=(3, 7))
    lens, _ = logit_lens(toy_crosscoder(sources), sources, n=N_VOCAB, max_bytes=2**20)
    tokens = torch.tensor([[3, 5, 7]])
    text, named = name_tokens(tokens, lens, sources)
    assert lens is not None
    assert named is not None
    assert [text.strings[at] for at in text.tokens.tolist()] == ["<think>", "w5", "w7"]
    for at, tokenizer in enumerate((toy_tokenizer(), own)):
        for side, ids in ((named.top, lens.top), (named.bottom, lens.bottom)):
            strings = [text.strings[string] for string in side[:, at].flatten().tolist()]
            assert strings == [tokenizer.decode([token]) for token in ids[:, at].flatten().tolist()]
            assert torch.equal(text.token_ids[side[:, at]], ids[:, at])


def test_models_with_one_vocabulary_share_their_strings() -> None:
    sources = toy_sources()
    for model in sources.models.values():
        model.tokenizer = toy_tokenizer()
    lens, _ = logit_lens(toy_crosscoder(sources), sources, n=3, max_bytes=2**20)
    text, _ = name_tokens(torch.tensor([[3, 5, 7]]), lens, sources)
    assert len(set(text.strings)) == len(text.strings)
    alone, nothing = name_tokens(torch.tensor([[3, 5, 7]]), None, sources)
    assert nothing is None
    assert list(alone.strings) == ["<think>", "w5", "w7"]
