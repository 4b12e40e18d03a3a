"""Tiny real models and tokenizers, built from configs."""

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

N_VOCAB = 40


def toy_model(*, n_layers: int = 3, d_model: int = 16, seed: int = 0) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=N_VOCAB,
        hidden_size=d_model,
        intermediate_size=2 * d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config).eval()


def toy_gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=N_VOCAB, n_embd=16, n_layer=3, n_head=2, n_positions=64, initializer_range=0.3,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).eval()


def toy_tokenizer(*, swapped: tuple[int, int] | None = None, bos: bool = False) -> PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", "<unk>", "<think>", *(f"w{i}" for i in range(4, N_VOCAB))]
    if swapped is not None:
        words[swapped[0]], words[swapped[1]] = words[swapped[1]], words[swapped[0]]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    if bos:
        special["bos_token"] = "<think>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, N_VOCAB, shape, generator=torch.Generator().manual_seed(seed))
