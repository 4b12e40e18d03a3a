"""The verdict on every latent: evidence, the rule, what chance leaves, and what could have been found."""

from crosscoders.diffing.verdicts.evidence import gather_evidence
from crosscoders.diffing.verdicts.judge import (
    DECOUPLING,
    RESCALED,
    REUSED,
    ROTATED,
    SHARED,
    SHRINKAGE,
    SPECIFIC,
    UNDECIDED,
    UNSTABLE,
    VERDICTS,
    Judgement,
    judge,
)
from crosscoders.diffing.verdicts.nulls import NullReference, null_reference
from crosscoders.diffing.verdicts.power import Power, PowerAtRate, power_lines
from crosscoders.diffing.verdicts.table import Verdicts, count_verdicts, judge_all
from crosscoders.diffing.verdicts.thresholds import Thresholds

__all__ = [
    "DECOUPLING",
    "RESCALED",
    "REUSED",
    "ROTATED",
    "SHARED",
    "SHRINKAGE",
    "SPECIFIC",
    "UNDECIDED",
    "UNSTABLE",
    "VERDICTS",
    "Judgement",
    "NullReference",
    "Power",
    "PowerAtRate",
    "Thresholds",
    "Verdicts",
    "count_verdicts",
    "gather_evidence",
    "judge",
    "judge_all",
    "null_reference",
    "power_lines",
]
