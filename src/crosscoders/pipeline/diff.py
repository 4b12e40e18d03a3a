"""`crosscoders.diff`: the main job in one call."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crosscoders._typing import typed
from crosscoders.activation_fns import ActivationFn, BatchTopK
from crosscoders.losses import LossTerm
from crosscoders.pipeline.config import DataConfig, RunConfig
from crosscoders.pipeline.run import Run, run
from crosscoders.training import TrainerConfig


@typed
def diff(
    *,
    base: Any,
    distilled: Any,
    text: str | Path,
    out: str | Path,
    n_latents: int,
    hook_name: str = "half",
    n_tokens: int | None = None,
    activation_fn: ActivationFn | None = None,
    objective: Sequence[LossTerm] = (),
    tokenizer: Any = None,
    data: DataConfig | None = None,
    training: TrainerConfig | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Run:
    """Train a crosscoder on two models that read the same text, and tabulate what differs.

    Args:
        base: Folder, Hub id, Hugging Face module or TransformerBridge of the first model (NRN 0).
        distilled: The same for the second model (NRN 1).
        text: `.txt` file (documents between blank lines) or `.jsonl` file (a "text" key per line).
        out: Run folder to create.
        n_latents: Dictionary size; 4 to 32 times the width of one model is usual.
        hook_name: TransformerLens hook read in both models; "half" is half depth.
        n_tokens: Tokens of the text to train on; None for all that is not held out.
        activation_fn: `BatchTopK(k=100)` if None; `ReLU()` trains the paper's objective.
        objective: Loss terms; empty for the field's choice for this activation function.
        tokenizer: Needed if modules come without one.
        data: How tokens are packed, held out and served; its `n_tokens` gives way to the argument.
        training: Optimizer and schedule.
        seed: Everything random derives from it.
        device: Torch device of models and crosscoder.

    Returns:
        The run: `run.summary()`, `run.latents`, `run.crosscoder`, and the folder `run.out`.

    Raises:
        ValueError: Unusable text, hook names or numbers.
        AdapterMismatchError: The two tokenizers give the same ids different meanings.
    """
    settings = {**vars(data or DataConfig())}
    if n_tokens is not None:
        settings["n_tokens"] = n_tokens
    config = RunConfig(
        base=_label(base),
        distilled=_label(distilled),
        text=str(text),
        out=str(out),
        n_latents=n_latents,
        hook_name=hook_name,
        activation_fn=activation_fn or BatchTopK(k=100),
        objective=tuple(objective),
        seed=seed,
        device=device,
        data=DataConfig(**settings),
        training=training or TrainerConfig(),
    )
    return run(config, base=base, distilled=distilled, tokenizer=tokenizer)


def _label(model: Any) -> str:
    return str(model) if isinstance(model, (str, Path)) else f"module:{type(model).__name__}"
