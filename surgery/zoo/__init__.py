"""Many checkpoints: a manifest, a plan of what all of it costs, a ledger of what was done, and processes that do it.

Every item runs in a process of its own, within limits, so that a broken model costs one row of a table. The ledger
alone says what is done: a run that was killed goes on where it was. Nothing here imports torch.

`running` is the way in: ``run_zoo(open_zoo("zoo.yaml"))``. Nothing is imported here, because every item's process
imports this package and should begin its work at once.
"""
