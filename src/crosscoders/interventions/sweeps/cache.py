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

_VERSION = 1


class SweepCache:
    """A folder with one JSON file per direction and strength.

    A file is found again only by a sweep with the same prompts, sampling, direction and model. The model is
    told by the bytes of its logits on the first prompt, so other weights, and now and then another machine,
    mean that answers are generated anew; nothing in the folder is ever taken for what it is not.

    Args:
        folder: Where the files lie; created if missing.
        model: The model as it is unsteered.
        prompts: The prompts.
        settings: What else the answers depend on, JSON-ready.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        settings: Mapping[str, Any],
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.n_prompts = len(prompts)
        logits = model.logits(torch.tensor([list(prompts[0])])).float().cpu()
        self._setup = {
            "version": _VERSION,
            "model": hashlib.sha256(logits.numpy().tobytes()).hexdigest(),
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
