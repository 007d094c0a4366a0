"""Proof that a converted checkpoint is what it claims: files, loading, logits, and the meaning of n."""

from surgery.verification.checks import Check, Verification
from surgery.verification.verification import verify

__all__ = ["Check", "Verification", "verify"]
