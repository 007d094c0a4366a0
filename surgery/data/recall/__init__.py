"""Recall data: texts with facts in them, and questions about the facts at the end.

`templates` holds every template, name and word: `TRAINING` families for training, `MEASURING` families for measuring.
They share nothing, so that a gain in a measurement is no memory of the training.
"""

from surgery.data.recall.haystack import Haystack, cut_text, draw_haystack, encode_haystack, place_facts, tokens_in
from surgery.data.recall.templates import MEASURING, TRAINING, Fact, FactFamily, TrainingFamily, draw_facts, most_facts

__all__ = [
    "MEASURING",
    "TRAINING",
    "Fact",
    "FactFamily",
    "Haystack",
    "TrainingFamily",
    "cut_text",
    "draw_facts",
    "draw_haystack",
    "encode_haystack",
    "most_facts",
    "place_facts",
    "tokens_in",
]
