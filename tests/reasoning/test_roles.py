"""Role measures against brute force, and roles of chat-templated text."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from crosscoders.reasoning import ROLES, RoleMeter, chat_roles, measure_roles
from tests.data.toy_models import toy_tokenizer
from tests.reasoning.toy_text import dense_latents, toy_crosscoder, toy_rows, toy_sources

R1 = "tokenizers/r1_distill_qwen/tokenizer.assembled.json"
USER, ASSISTANT = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"


def test_role_measures_agree_with_brute_force(generator):
    sources = toy_sources()
    crosscoder = toy_crosscoder(sources)
    tokens, mask = toy_rows()
    roles = torch.randint(-1, 3, tokens.shape, generator=generator)
    found = measure_roles(
        crosscoder,
        sources,
        tokens=tokens,
        mask=mask,
        roles=roles,
        role_names=("a", "b", "c"),
        rows_at_a_time=7,
    )
    dense = dense_latents(crosscoder, sources, tokens, mask).double()
    total = sum(dense[(roles == role) & mask].sum(dim=0) for role in range(3))
    for role in range(3):
        there = dense[(roles == role) & mask]
        fired = (there > 0).double().sum(dim=0)
        close = {"rtol": 1e-5, "atol": 1e-7, "equal_nan": True}
        assert found.n_tokens[role] == len(there)
        torch.testing.assert_close(found.frequency[:, role], fired / len(there))
        torch.testing.assert_close(found.mean_activation[:, role], there.sum(dim=0) / fired, **close)
        torch.testing.assert_close(found.share[:, role], there.sum(dim=0) / total, **close)


def test_a_role_without_tokens_is_undefined_not_zero():
    sources = toy_sources()
    tokens, mask = toy_rows(6)
    found = measure_roles(
        toy_crosscoder(sources), sources, tokens=tokens, mask=mask, roles=torch.full_like(tokens, 2)
    )
    assert bool(found.frequency[:, 0].isnan().all())
    assert not bool(found.frequency[:, 2].isnan().any())


def test_a_role_without_a_name_is_refused():
    with pytest.raises(ValueError, match="roles must be"):
        RoleMeter(4, roles=torch.tensor([[0, 4]]))


def labels(text: str) -> str:
    """Roles of a toy text, one letter a token: T, P, H (thought), A, ? (unknown)."""
    tokenizer = toy_tokenizer()
    ids = torch.tensor([tokenizer.encode(text)])
    found = chat_roles(ids, tokenizer, think=("<think>", "w5"), assistant=("w6", "w7 w8"), prompt=("w9",))
    return "".join("TPHA?"[role] for role in found[0].tolist())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("w9 w20 w21 w6 <think> w22 w5 w23 <eos>", "TPPTTHTAT"),
        ("w9 w20 w6 w22 w5 w23", "TPTHTA"),  # the template wrote or dropped the opening marker
        ("w9 w20 w7 w8 w23 w9 w24 w6 w25", "TPTTATPTA"),  # two turns; a marker of two tokens
        ("w20 w6 w21", "PTA"),  # a system prompt before any marker
        ("w22 w22 w5 w23", "HHTA"),  # a row that begins in the middle of a thought
        ("w20 w21 <eos> w22", "??T?"),  # plain text
        ("w9 w20 <think> w21 w5 w22 w6 w23", "TPTPTPTA"),  # a question about the markers
        ("w9 w20 w6 w21 <eos> <pad> <pad>", "TPTATTT"),
        ("w7 w20", "??"),  # half a marker is none
    ],
)
def test_chat_roles_of_a_made_up_template(text, expected):
    assert labels(text) == expected


def test_a_tokenizer_without_the_assistant_marker_is_refused():
    with pytest.raises(ValueError, match="assistant markers"):
        chat_roles(torch.tensor([[5, 6]]), toy_tokenizer())


def test_chat_roles_of_the_r1_distill_tokenizer(data_file):
    begin, end = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(data_file(R1)), bos_token=begin, eos_token=end, pad_token=end
    )
    parts = [
        (begin, "template"),
        (USER, "template"),
        ("What is 5-1?", "prompt"),
        (ASSISTANT, "template"),
        ("<think>", "template"),
        ("\nWait, 5-1 is 4.\n", "thought"),
        ("</think>", "template"),
        ("\n\nIt is 4.", "answer"),
        (end, "template"),
    ]
    ids, expected = [], []
    for text, role in parts:
        piece = tokenizer.encode(text, add_special_tokens=False)
        ids += piece
        expected += [ROLES.index(role)] * len(piece)
    assert tokenizer.decode(ids) == "".join(text for text, _ in parts)
    assert chat_roles(torch.tensor([ids]), tokenizer)[0].tolist() == expected
