"""The documentation; `python -m docs.generate` writes docs/reference/ from the schemas and the commands."""
