"""Prompts with a known right continuation, for retrieval at a given length and depth; random with a seed."""

from surgery.evaluation.retrieval.probes.abcdigits import abcdigits, abcdigits_lines
from surgery.evaluation.retrieval.probes.factory import make_probe
from surgery.evaluation.retrieval.probes.hidden_facts import needle, passkey
from surgery.evaluation.retrieval.probes.induction import induction
from surgery.evaluation.retrieval.probes.probe import Probe, ProbeSet
from surgery.evaluation.retrieval.probes.recall import HaystackMaker

__all__ = [
    "HaystackMaker",
    "Probe",
    "ProbeSet",
    "abcdigits",
    "abcdigits_lines",
    "induction",
    "make_probe",
    "needle",
    "passkey",
]
