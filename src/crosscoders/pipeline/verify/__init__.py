"""Verification of a finished run: nulls, plants, seeds, verdicts and the causal check."""

from crosscoders.pipeline.verify.options import VerifyOptions
from crosscoders.pipeline.verify.result import Verification
from crosscoders.pipeline.verify.verify import verify, verify_on

__all__ = ["Verification", "VerifyOptions", "verify", "verify_on"]
