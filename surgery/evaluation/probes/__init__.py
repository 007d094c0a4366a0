"""Prompts whose right continuation is known: retrieval at a given length and depth, random but for a seed."""

from surgery.evaluation.probes.abcdigits import abcdigits, abcdigits_lines
from surgery.evaluation.probes.base import Probe
from surgery.evaluation.probes.fitting import make_probe
from surgery.evaluation.probes.hidden import needle, passkey
from surgery.evaluation.probes.induction import induction

__all__ = ["Probe", "abcdigits", "abcdigits_lines", "induction", "make_probe", "needle", "passkey"]
