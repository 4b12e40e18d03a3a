"""Enrichment against brute force, and the lexical questions."""

import torch

from crosscoders.metrics import auroc
from crosscoders.reasoning import CATEGORIES, LEXICON, Enrichment, lexical_contrasts

N_TOKENS, N_LATENTS = 900, 12


def sparse_activations(generator: torch.Generator) -> torch.Tensor:
    fired = torch.rand(N_TOKENS, N_LATENTS, generator=generator) < 0.3
    return torch.where(fired, torch.rand(N_TOKENS, N_LATENTS, generator=generator) * 8 + 0.01, 0.0)


def streamed(activations: torch.Tensor, answer: torch.Tensor, *, chunk: int) -> Enrichment:
    enrichment = Enrichment(N_LATENTS, ("q",))
    for part, answers in zip(activations.split(chunk), answer.split(chunk), strict=True):
        rows, indices = part.nonzero(as_tuple=True)
        enrichment.update(rows, indices, part[rows, indices], answers={"q": answers})
    return enrichment


def test_enrichment_agrees_with_exact_auroc_precision_and_recall(generator):
    activations = sparse_activations(generator)
    answer = torch.randint(-1, 2, (N_TOKENS,), generator=generator)
    activations[answer == 1, 3] += 2.0
    scores = streamed(activations, answer, chunk=N_TOKENS).scores("q")
    asked = answer >= 0
    for latent in range(N_LATENTS):
        exact = auroc(activations[asked, latent], answer[asked] == 1)
        assert abs(float(scores["auroc"][latent]) - exact) < 0.01
        fired = activations[:, latent] > 0
        yes = (fired & (answer == 1)).sum()
        assert scores["precision"][latent] == yes.double() / (fired & asked).sum()
        assert scores["recall"][latent] == yes.double() / (answer == 1).sum()


def test_enrichment_does_not_depend_on_the_chunks(generator):
    activations = sparse_activations(generator)
    answer = torch.randint(-1, 2, (N_TOKENS,), generator=generator)
    whole, parts = (streamed(activations, answer, chunk=chunk).scores("q") for chunk in (N_TOKENS, 97))
    for name in whole:
        assert torch.equal(whole[name].nan_to_num(), parts[name].nan_to_num())


def test_constant_activation_has_auroc_one_half_and_a_perfect_one_has_one(generator):
    answer = torch.randint(0, 2, (N_TOKENS,), generator=generator)
    activations = torch.zeros(N_TOKENS, N_LATENTS)
    activations[:, 0], activations[:, 1] = 1.0, answer.float()
    scores = streamed(activations, answer, chunk=100).scores("q")["auroc"]
    assert scores[:3].tolist() == [0.5, 1.0, 0.5]


def test_question_without_both_answers_is_undefined_not_zero():
    activations = torch.ones(N_TOKENS, N_LATENTS)
    scores = streamed(activations, torch.zeros(N_TOKENS, dtype=torch.int64), chunk=100).scores("q")
    assert bool(scores["auroc"].isnan().all())
    assert bool(scores["recall"].isnan().all())


class WordTokenizer:
    unk_token_id = 99
    words = ("Wait", " Wait", "But", " the", " Hold", " on")

    def encode(self, text, *, add_special_tokens):
        ids = []
        while text:
            word = next((w for w in self.words if text.startswith(w)), text[0])
            ids.append(self.words.index(word) if word in self.words else 99)
            text = text[len(word) :]
        return ids


def test_lexical_questions_find_phrases_with_and_without_a_space():
    tokens = torch.tensor([[3, 1, 3, 4, 5, 3, 2]])
    contrasts = lexical_contrasts(tokens, WordTokenizer())
    assert contrasts["marker/self-reflection"].tolist() == [[0, 1, 0, 1, 0, 0, 0]]
    assert contrasts["onset/self-reflection"].tolist() == [[1, 0, 1, 0, 0, 0, -1]]
    unknown = lexical_contrasts(torch.tensor([[3, 99, 3]]), WordTokenizer())
    assert all(1 not in answers for answers in unknown.values())
    assert contrasts["marker/contrastive"].tolist() == [[0, 0, 0, 0, 0, 0, 1]]


def test_every_category_has_phrases():
    assert set(LEXICON) == set(CATEGORIES)
    assert all(LEXICON.values())
