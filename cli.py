"""Run the command line from a checkout: ``python cli.py ...``."""

from surgery.commands import main

main()
