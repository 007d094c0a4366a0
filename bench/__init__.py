"""Measurements against an alternative in the same run; each is one command that can write JSON."""
