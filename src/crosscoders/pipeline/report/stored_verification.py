"""A verification read back from its folder, if it is one of the crosscoder at hand."""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from crosscoders._io import check_file, check_listing, parse_json
from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.measures.alignment import Alignment
from crosscoders.diffing.verdicts import Judgement, NullReference, Power, PowerAtRate, Thresholds, Verdicts
from crosscoders.errors import CheckpointError
from crosscoders.latents import LatentTable
from crosscoders.metrics import decoder_norm_share
from crosscoders.pipeline.config import RunConfig
from crosscoders.provenance import weights_fingerprint

_NOT_FIGURES = ("verdict", "reason")
_SHARE_TOLERANCE = 1e-4  # verdicts.csv has six digits
_AGAIN = "run `crosscoders verify` again"


@final
@dataclass(frozen=True, kw_only=True)
class StoredVerification:
    """What a verification left in its folder.

    Args:
        verdicts: On the run's crosscoder, with the nulls and the power; without evidence if the sources were
            not aligned.
        others: Per kind of further crosscoder their `n_live`, `n_specific` and `counts`.
        causal: The causal check by kind of text, as `verification.json` has it.
        n_seeds: Crosscoders of the run's own pair that were compared, its own among them.
    """

    verdicts: Verdicts
    others: Mapping[str, tuple[Mapping[str, Any], ...]]
    causal: Mapping[str, Mapping[str, Any]]
    n_seeds: int

    @property
    def is_short(self) -> bool:
        """Whether no seeds were compared."""
        return self.n_seeds < 2


@typed
def read_verification(
    folder: Path, *, crosscoder: Crosscoder, config: RunConfig, latents: LatentTable
) -> StoredVerification | None:
    """Read what `crosscoders verify` wrote, and refuse it if it is not about this crosscoder.

    Checked: the checksums of its files; the configuration of the run that it verified, but for the folder;
    the sources; and the SHA-256 of the weights, or, where an older version did not record it, that the
    decoder-norm share of every latent is the one that `verdicts.csv` has.

    Args:
        folder: Such as RUN/verify.
        crosscoder: The run's crosscoder.
        config: The run's configuration.
        latents: The run's table: says how many tokens the frequencies refer to.

    Returns:
        The verification; None if there is none.

    Raises:
        CheckpointError: It is incomplete, damaged, or about another crosscoder.
    """
    if not (folder / "verification.json").is_file():
        return None
    _check_files(folder)
    done = _read_json(folder / "run.json")
    found = _read_json(folder / "verification.json")
    try:
        _check_run(done, crosscoder, config, where=folder)
        verdicts = _verdicts(found, folder, n_tokens=latents.n_tokens)
        _check_weights(done["data"].get("weights_sha256"), verdicts, crosscoder, where=folder)
        return StoredVerification(
            verdicts=verdicts,
            others={name: tuple(group) for name, group in found["others"].items()},
            causal=dict(found["causal"]),
            n_seeds=int(done["config"]["verify"]["n_seeds"]),
        )
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise CheckpointError(f"{folder}: not a verification that this version reads ({err!r}).") from err


@typed
def verification_or_note(
    folder: Path, *, crosscoder: Crosscoder, config: RunConfig, latents: LatentTable
) -> tuple[StoredVerification | None, tuple[str, ...]]:
    """A run's verification, or else a sentence that says why there is none to show.

    Args:
        folder: Such as RUN/verify.
        crosscoder: The run's crosscoder.
        config: The run's configuration.
        latents: The run's table.
    """
    try:
        found = read_verification(folder, crosscoder=crosscoder, config=config, latents=latents)
    except (CheckpointError, OSError) as err:
        said = str(err).replace(str(folder), "verify").rstrip(".")
        return None, (f"There is a verification, but it is not shown: {said}.",)
    return found, () if found is not None else ("This run was not verified.",)


def _read_json(path: Path) -> Any:
    return parse_json(path, path.read_bytes())


def _check_files(folder: Path) -> None:
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise CheckpointError(f"{folder}: holds no manifest.json, so it was never finished; {_AGAIN}.")
    content = _read_json(manifest)
    listed = check_listing(manifest, content.get("files") if isinstance(content, dict) else None)
    missing = sorted({"verification.json", "run.json"} - set(listed))
    if missing:
        raise CheckpointError(f"{manifest}: lists no {' and no '.join(missing)}; {_AGAIN}.")
    for name, entry in listed.items():
        check_file(folder / name, entry)


def _check_run(done: Any, crosscoder: Crosscoder, config: RunConfig, *, where: Path) -> None:
    """Check that the run that was verified had this configuration and these sources."""
    verified = RunConfig.from_dict(done["config"]["run"])
    objective = verified.objective or config.objective  # which a run fills in
    if replace(verified, out=config.out, objective=objective) != config:  # a folder may have been moved
        raise CheckpointError(f"{where}: it verified a run with another configuration; {_AGAIN}.")
    wanted = {(source.name, source.d_model, source.hook_name) for source in crosscoder.sources}
    got = {(s["name"], s["d_model"], s["hook_name"]) for s in done["data"]["sources"].values()}
    if not wanted <= got:
        raise CheckpointError(f"{where}: it read {sorted(got)}, the crosscoder reads {sorted(wanted)}.")


def _verdicts(found: Any, folder: Path, *, n_tokens: int) -> Verdicts:
    first, second = found["pair"]
    evidence, judgements = None, ()
    if found["survivors"] is not None:
        evidence, judgements = _read_table(folder / "verdicts.csv", n_tokens=n_tokens)
    power = found["power"]
    verdicts = Verdicts(
        pair=(first, second),
        evidence=evidence,
        judgements=judgements,
        thresholds=Thresholds(**found["thresholds"]),
        alignment=_alignment(found["alignment"]),
        nulls=tuple(_null(null) for null in found["nulls"]),
        power=None if power is None else _power(power),
    )
    if evidence is not None and verdicts.latents().tolist() != found["survivors"]:
        raise CheckpointError(f"{folder}: verdicts.csv and verification.json name different survivors.")
    return verdicts


def _read_table(path: Path, *, n_tokens: int) -> tuple[LatentTable, tuple[Judgement, ...]]:
    """The evidence and the verdicts of `verdicts.csv`; an empty field is NaN."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else {}) if name not in _NOT_FIGURES]
    columns: dict[str, Tensor] = {
        name: torch.tensor([float(row[name] or math.nan) for row in rows], dtype=torch.float64)
        for name in names
    }
    if not rows or columns["latent"].tolist() != list(range(len(rows))):
        raise CheckpointError(f"{path}: expected one row per latent in order, got {len(rows)} rows.")
    columns["latent"] = columns["latent"].long()
    judgements = tuple(Judgement(verdict=row["verdict"], reason=row["reason"]) for row in rows)
    return LatentTable(columns, n_tokens), judgements


def _check_weights(sha256: str | None, verdicts: Verdicts, crosscoder: Crosscoder, *, where: Path) -> None:
    """Check that the weights are those that were verified."""
    if sha256 is not None:
        is_same = sha256 == weights_fingerprint(crosscoder.state_dict())
    else:
        is_same = verdicts.evidence is None or _has_shares(crosscoder, verdicts.evidence, pair=verdicts.pair)
    if not is_same:
        raise CheckpointError(f"{where}: it verified another crosscoder than the one in this run; {_AGAIN}.")


def _has_shares(crosscoder: Crosscoder, evidence: LatentTable, *, pair: tuple[str, str]) -> bool:
    """Whether the decoder norms are those of the evidence: no two trainings end in the same ones."""
    which = [[source.name for source in crosscoder.sources].index(name) for name in pair]
    roots = torch.tensor([crosscoder.sources[i].d_model for i in which], dtype=torch.float64).sqrt()
    norms = crosscoder.decoder_norms().detach().double().cpu()[:, which] / roots
    share, said = decoder_norm_share(norms)[:, 1], evidence["norm_share"]
    return len(share) == len(said) and torch.allclose(
        share, said, rtol=0, atol=_SHARE_TOLERANCE, equal_nan=True
    )


def _alignment(found: Mapping[str, Any]) -> Alignment:
    def pair(name: str) -> tuple[float, float]:
        first, second = (math.nan if value is None else float(value) for value in found[name])
        return first, second

    first, second = found["pair"]
    return Alignment(
        pair=(first, second),
        n_rows=found["n_rows"],
        r_squared=pair("r_squared"),
        permuted=pair("permuted"),
        shifted=pair("shifted"),
        min_gain=float(found["min_gain"]),
    )


def _null(found: Mapping[str, Any]) -> NullReference:
    live, false = (
        {int(at): int(n) for at, n in found[name].items()} for name in ("n_live", "n_false")
    )  # JSON's keys are text
    return NullReference(name=found["name"], n_crosscoders=found["n_crosscoders"], n_live=live, n_false=false)


def _power(found: Mapping[str, Any]) -> Power:
    return Power(**{**found, "rates": tuple(PowerAtRate(**at) for at in found["rates"])})
