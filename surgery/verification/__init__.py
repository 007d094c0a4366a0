"""Proof that a converted checkpoint is what it claims: files, loading, logits, and the meaning of n."""

from surgery.verification.checks import Check, Verification
from surgery.verification.verification import verify
from surgery.verification.workload import VerificationPlan, plan_verification

__all__ = ["Check", "Verification", "VerificationPlan", "plan_verification", "verify"]
