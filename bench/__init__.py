"""Measurements against an alternative in the same run; one command each, JSON out."""
