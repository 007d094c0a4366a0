"""The command line: one file per command. Parse, call the library, render; no logic, and no torch at import."""

from surgery.commands.app import main

__all__ = ["main"]
