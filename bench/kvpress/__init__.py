"""Screened models side by side with kvpress, which drops keys after the prompt: ``python -m bench.kvpress``."""
