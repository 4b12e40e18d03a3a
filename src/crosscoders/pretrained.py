"""Saved crosscoders by name: so far by the name of a folder."""

from pathlib import Path

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.errors import CheckpointError


@typed
def from_pretrained(path: str | Path) -> Crosscoder:
    """Read a crosscoder that `Crosscoder.save_pretrained` wrote; it comes in eval mode.

    Args:
        path: The folder that holds `config.json` and `model.safetensors`.

    Returns:
        The crosscoder on the CPU, in the dtype it was saved in.

    Raises:
        CheckpointError: There is no such folder, a byte in it changed, a file or key is missing or unknown,
            or the format is another.

    Example:
        crosscoder = from_pretrained("runs/mine")
    """
    if not Path(path).is_dir():
        raise CheckpointError(
            f"from_pretrained: {str(path)!r} is not a folder; expected one that Crosscoder.save_pretrained "
            "wrote. Names of Hub repositories are not looked up: download the repository and pass its folder."
        )
    return Crosscoder.from_pretrained(path)
