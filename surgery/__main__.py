"""``python -m surgery`` is the command line."""

from surgery.commands import main

main()
