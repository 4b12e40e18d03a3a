"""Finished answers of a sweep on disk, so that one that was cut short goes on where it stopped."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosscoders._io import atomic_write_json
from crosscoders._typing import typed
from crosscoders.models.base import LanguageModel

_VERSION = 2


class SweepCache:
    """A folder with one JSON file per direction and strength.

    A file is found again only by a sweep with the same prompts, sampling, direction key and model. The model
    is told by the bytes of its logits after each prompt, so other weights, and now and then another machine,
    mean that answers are generated anew. Two models that agree to the last bit after every prompt are taken
    for the same one. Hooks could act on generated tokens alone, which no prompt shows; while any is on the
    model there is no cache. A direction is taken at its key's word.

    Args:
        folder: Where the files lie; created if missing.
        model: The model as it is unsteered.
        prompts: The prompts.
        settings: What else the answers depend on, JSON-ready.
        batch_size: Prompts that are read together to tell the model.

    Raises:
        ValueError: A hook is on the model or one of its modules.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        settings: Mapping[str, Any],
        batch_size: int = 16,
    ) -> None:
        _check_no_hooks(model)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.n_prompts = len(prompts)
        self._setup = {
            "version": _VERSION,
            "model": _fingerprint(model, prompts, batch_size=batch_size),
            "prompts": [list(prompt) for prompt in prompts],
            "settings": dict(settings),
        }

    @typed
    def load(self, key: str, strength: float) -> tuple[list[list[int]], Tensor] | None:
        """Answers and their coherence, or None if they are not there.

        Args:
            key: Key of the direction.
            strength: Strength.

        Raises:
            ValueError: A file of this name that this class did not write.
        """
        path = self._path(key, strength)
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            answers, coherence = content["answers"], torch.tensor(content["coherence"], dtype=torch.float64)
        except (ValueError, KeyError, TypeError) as err:
            raise ValueError(f"{path} is no file of a sweep's cache ({err}); delete it.") from err
        if len(answers) != self.n_prompts or len(coherence) != self.n_prompts:
            raise ValueError(f"{path} holds {len(answers)} answers for {self.n_prompts} prompts; delete it.")
        return answers, coherence

    @typed
    def store(
        self, key: str, strength: float, *, answers: Sequence[Sequence[int]], coherence: Tensor
    ) -> None:
        """Write answers and their coherence; an interruption leaves no half a file.

        Args:
            key: Key of the direction.
            strength: Strength.
            answers: Token ids of each answer.
            coherence: Mean log-probability per token of each.
        """
        content = {
            "strength": strength,
            "answers": [list(a) for a in answers],
            "coherence": coherence.tolist(),
        }
        atomic_write_json(self._path(key, strength), content)

    def _path(self, key: str, strength: float) -> Path:
        what = json.dumps({**self._setup, "direction": key, "strength": strength}, sort_keys=True)
        return self.folder / f"sweep-{hashlib.sha256(what.encode()).hexdigest()[:24]}.json"


def _fingerprint(model: LanguageModel, prompts: Sequence[Sequence[int]], *, batch_size: int) -> str:
    """Hash of the model's logits after each prompt."""
    digest = hashlib.sha256()
    for start in range(0, len(prompts), batch_size):
        rows = [torch.tensor(list(prompt)) for prompt in prompts[start : start + batch_size]]
        logits = model.logits(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True))
        last = logits[torch.arange(len(rows)), [len(row) - 1 for row in rows]]
        digest.update(last.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _check_no_hooks(model: LanguageModel) -> None:
    hooked = [
        name or "the model itself"
        for name, module in model.causal_lm.named_modules()
        if any(
            _is_foreign(hook, module)
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        )
    ]
    if hooked:
        raise ValueError(
            f"sweep: model {model.name!r} has hooks on {hooked[:3]} ({len(hooked)} modules), which may act "
            "on generated tokens only, so that a cache could not tell its answers from others; leave the "
            "edit or remove the hooks first, or sweep without cache."
        )


def _is_foreign(hook: Any, module: torch.nn.Module) -> bool:
    """Whether a hook may change what the model does; a bridge leaves plumbing of its own on its norms."""
    is_plumbing = getattr(hook, "__module__", "").startswith("transformer_lens")
    return type(module).__name__ == "HookPoint" or not is_plumbing
