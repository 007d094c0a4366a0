"""Many checkpoints: a manifest of models, a plan with its costs, a ledger of what was done, one process per item.

Every item runs in a process of its own, within limits, so a broken model costs one row of the table. The ledger alone
says what is done, so a killed run resumes. Nothing here imports torch.

Start with ``run_zoo(open_zoo("zoo.yaml"))`` from `run` and `zoo`. This file imports nothing, because the process of
every item imports this package and must start fast.
"""
