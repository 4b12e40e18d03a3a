"""What an interrupted run left in its folder: whether it may be written to, and weights that are trained."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crosscoders._io import is_temporary, sha256_file
from crosscoders._typing import typed
from crosscoders.artifact import read_header
from crosscoders.crosscoder import Crosscoder
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus
from crosscoders.provenance import data_fingerprint
from crosscoders.training.update import FREE_TO_CHANGE

TRAINED_AS = "trained_as"  # in the training summary of a run's crosscoder: `training_digest`
_ONLY_MEASURED = ("held_out_tokens", "splice_tokens")  # which text is left to train on has its own digest


@typed
def claim_folder(out: Path) -> None:
    """Make the run folder, or take over one that a run of ours wrote.

    What an interrupted write left there under a temporary name is removed.

    Args:
        out: The run folder.

    Raises:
        FileExistsError: It holds something else.
    """
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    if "run.json" not in names and not all(map(is_temporary, names)):
        raise FileExistsError(f"{out} is neither empty nor the folder of a run; choose another out folder.")
    out.mkdir(parents=True, exist_ok=True)
    for name in filter(is_temporary, names):
        left = out / name
        shutil.rmtree(left) if left.is_dir() else left.unlink()


@typed
def training_digest(config: RunConfig, data: Mapping[str, Any]) -> str:
    """SHA-256 of everything that the trained weights depend on.

    Args:
        config: The run's configuration; what only observes, measures or says where files lie does not count.
        data: The `data` entry of the run's record.
    """
    plain = config.to_dict()
    plain["data"] = {key: value for key, value in plain["data"].items() if key not in _ONLY_MEASURED}
    plain["training"] = {k: value for k, value in plain["training"].items() if k not in FREE_TO_CHANGE}
    plain["system"] = {"rows_dtype": config.system.rows_dtype}
    begun = data["warm_start"] and data["warm_start"]["config_sha256"]
    text = [data["train_sha256"], list(data["exclude_token_ids"]), begun]
    del plain["out"]
    return hashlib.sha256(json.dumps([plain, text], sort_keys=True).encode()).hexdigest()


@typed
def trained_crosscoder(folder: Path, *, digest: str, device: str) -> Crosscoder | None:
    """The crosscoder that a run saved when its training ended; None if it did not come so far.

    Args:
        folder: Where the run keeps its crosscoder.
        digest: What `training_digest` says of the run that is to go on.
        device: Where it is to lie.

    Raises:
        CheckpointError: Its files were changed.
    """
    if not (folder / "config.json").exists():
        return None
    summary = read_header(folder)["training_summary"] or {}
    return Crosscoder.from_pretrained(folder).to(device) if summary.get(TRAINED_AS) == digest else None


@typed
def warm_start_origin(warm_start: Path | str | None, *, resumed: Path | None) -> dict[str, str] | None:
    """What a run began with, a resumed one as its record says; an artifact's config covers its weights.

    Args:
        warm_start: Folder of a saved crosscoder to begin with.
        resumed: Folder of the run that is to go on, if one is.

    Returns:
        Path and digest; None for random weights.

    Raises:
        FileNotFoundError: `warm_start` holds no crosscoder.
        ValueError: The run that is to go on began otherwise.
    """
    file = None if warm_start is None else Path(warm_start) / "config.json"
    if file is not None and not file.is_file():
        raise FileNotFoundError(f"warm start from {warm_start}: there is no config.json of a crosscoder.")
    given = None if file is None else {"path": str(warm_start), "config_sha256": sha256_file(file)}
    if resumed is None or not (resumed / "run.json").exists():
        return given
    record = json.loads((resumed / "run.json").read_text(encoding="utf-8"))
    known = record["data"].get("warm_start")
    if given is not None and given["config_sha256"] != (known or {}).get("config_sha256"):
        raise ValueError(
            f"warm start from {warm_start}: the run in {resumed} that is to be resumed began with "
            f"{'random weights' if known is None else known['path']}; leave warm_start or resume out."
        )
    return known


@typed
def data_record(corpus: Corpus) -> dict[str, Any]:
    """Which text a run reads, as its record says it.

    Args:
        corpus: The tokens.
    """
    return {
        "train_sha256": data_fingerprint(corpus.train),
        "held_out_sha256": data_fingerprint(corpus.held_out),
        "train_shape": list(corpus.train.shape),
        "held_out_shape": list(corpus.held_out.shape),
        "origins": list(corpus.origins),
        "exclude_token_ids": list(corpus.exclude_token_ids),
    }
