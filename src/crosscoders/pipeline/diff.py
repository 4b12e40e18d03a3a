"""`crosscoders.diff`: the main job in one call."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from crosscoders._typing import typed
from crosscoders.activation_fns import ActivationFn, BatchTopK
from crosscoders.losses import LossTerm
from crosscoders.models.id_policy import IdPolicy
from crosscoders.pipeline.config import DataConfig, RunConfig
from crosscoders.pipeline.model_config import ModelConfig
from crosscoders.pipeline.pair import MODULE
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
    dtype: str = "float32",
    id_policy: IdPolicy | Literal["drop", "mask"] | None = None,
    resume: bool = False,
) -> Run:
    """Train a crosscoder on two models that read the same text, and tabulate what differs.

    Args:
        base: Folder, Hub id, `ModelConfig`, Hugging Face module or TransformerBridge of the first model
            (NRN 0).
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
        dtype: "float32", "bfloat16" or "float16" of models that are loaded; modules keep theirs.
        id_policy: What happens to token ids whose meaning differs between the two tokenizers; None gives
            `data` the word.
        resume: Go on from the newest checkpoint of an interrupted run in `out`.

    Returns:
        The run: `run.summary()`, `run.latents`, `run.crosscoder`, and the folder `run.out`.

    Raises:
        ValueError: Unusable text, hook names or numbers.
        AdapterMismatchError: The two tokenizers give the same ids different meanings.
    """
    settings = {**vars(data or DataConfig())}
    if n_tokens is not None:
        settings["n_tokens"] = n_tokens
    if id_policy is not None:
        settings["id_policy"] = id_policy
    config = RunConfig(
        base=_named(base, dtype=dtype),
        distilled=_named(distilled, dtype=dtype),
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
    first, second = (
        None if isinstance(model, str | Path | ModelConfig) else model for model in (base, distilled)
    )
    return run(config, base=first, distilled=second, tokenizer=tokenizer, resume=resume)


def _named(model: Any, *, dtype: str) -> str | ModelConfig:
    """What the configuration says of a model: a bare path where nothing but the path was said."""
    if isinstance(model, ModelConfig):
        return model
    if not isinstance(model, str | Path):
        return f"{MODULE}{type(model).__name__}"
    named = ModelConfig(path=str(model), dtype=dtype)
    return named.path if named == ModelConfig(path=named.path) else named
