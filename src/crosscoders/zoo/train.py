"""Train a bundled model family from its recipe.

Run: `python -m crosscoders.zoo.train tiny-reasoner --out DIR`.
"""

import argparse
import itertools
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from crosscoders._typing import typed
from crosscoders.zoo.recipe import RECIPES, Architecture, Recipe, Stage, documents
from crosscoders.zoo.text import LabelledText
from crosscoders.zoo.vocabulary import END_OF_TEXT, build_tokenizer, token_ids, vocabulary

log = logging.getLogger(__name__)
_IGNORED = -100
_POOL_DOCUMENTS = 512  # packed best-fit at a time


@typed
def build_model(architecture: Architecture, *, seed: int) -> Any:
    """A randomly initialized model of the recipe's shape; the global random state is left as it was.

    Args:
        architecture: The shape.
        seed: Seed of the weights.

    Returns:
        A `transformers.Qwen2ForCausalLM` in float32 on the CPU.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(vocabulary()),
        hidden_size=architecture.d_model,
        intermediate_size=architecture.d_mlp,
        num_hidden_layers=architecture.n_layers,
        num_attention_heads=architecture.n_heads,
        num_key_value_heads=architecture.n_kv_heads,
        max_position_embeddings=architecture.n_ctx,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=token_ids()[END_OF_TEXT],
        pad_token_id=token_ids()[END_OF_TEXT],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)


@typed
def training_rows(stage: Stage) -> Iterator[tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]]:
    """Endless (tokens, targets), one pair per step; slips and padding carry no loss.

    Targets are the tokens themselves, not shifted, with -100 where no loss is taken.

    Args:
        stage: Which text, how many rows a step and how long they are.
    """
    stream, end = documents(stage.mixture, stage.seed), token_ids()[END_OF_TEXT]
    rng = random.Random(stage.seed)
    ready: list[tuple[list[int], list[int]]] = []
    while True:
        while len(ready) < stage.sequences_per_step:
            rows = _pack(list(itertools.islice(stream, _POOL_DOCUMENTS)), stage.sequence_length, end)
            rng.shuffle(rows)  # packing sorts by length
            ready += rows
        batch, ready = ready[: stage.sequences_per_step], ready[stage.sequences_per_step :]
        tokens, targets = zip(*batch, strict=True)
        yield torch.tensor(tokens), torch.tensor(targets)


def _pack(pool: list[LabelledText], length: int, end: int) -> list[tuple[list[int], list[int]]]:
    """Whole documents, each closed by end-of-text, into rows of one length (first-fit decreasing)."""
    # Not `models.tokens.pack_rows`: it fits best in the given order, and other rows make other checkpoints.
    open_rows: list[tuple[list[int], list[int]]] = []
    for text in sorted(pool, key=len, reverse=True):
        ids = [*text.ids, end]
        targets = [
            _IGNORED if slip else token for token, slip in zip(text.ids, text.is_slip, strict=True)
        ] + [end]
        row = next((row for row in open_rows if len(row[0]) + len(ids) <= length), None)
        if row is None:
            open_rows.append((ids, targets))
        else:
            row[0].extend(ids)
            row[1].extend(targets)
    for ids, targets in open_rows:
        targets += [_IGNORED] * (length - len(ids))
        ids += [end] * (length - len(ids))
    return open_rows


@typed
def train_stage(model: nn.Module, stage: Stage, *, report_every_steps: int = 250) -> None:
    """Run one stage in place: AdamW, warm-up, linear decay to zero, bf16 autocast.

    Args:
        model: A `transformers` causal language model in float32; comes out in eval mode.
        stage: Text, schedule and optimizer numbers.
        report_every_steps: How often the loss is logged.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=stage.lr, betas=(0.9, 0.95), weight_decay=stage.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / stage.warmup_steps, 1 - step / stage.n_steps)
    )
    model.train()
    for step, (tokens, targets) in enumerate(itertools.islice(training_rows(stage), stage.n_steps), 1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), targets[:, 1:].flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), stage.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % report_every_steps == 0:
            log.info("%s: step %d of %d, loss %.4f", stage.name, step, stage.n_steps, loss.item())
    model.eval()


@typed
def run(recipe: Recipe, out: Path, *, only: str | None = None) -> None:
    """Train the stages in order and save each as a `transformers` folder in half precision.

    Args:
        recipe: The stages and the shape.
        out: Folder for the checkpoints.
        only: Name of the one stage to train; the checkpoint that it continues must lie in `out`.
    """
    from transformers import Qwen2ForCausalLM

    model: Any
    for stage in recipe.stages:
        if only not in (None, stage.name):
            continue
        if stage.start is None:
            model = build_model(recipe.architecture, seed=stage.seed)
        else:
            model = Qwen2ForCausalLM.from_pretrained(out / stage.start, dtype=torch.float32)
        train_stage(model, stage)
        model.to(torch.float16).save_pretrained(out / stage.name)
        build_tokenizer().save_pretrained(out / stage.name)


def main() -> None:
    """Command line of the recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoints")
    parser.add_argument("--only", help="train one stage alone (the one that it continues must lie in --out)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run(RECIPES[arguments.recipe], arguments.out, only=arguments.only)


if __name__ == "__main__":
    main()
