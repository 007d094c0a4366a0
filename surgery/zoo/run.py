"""A run of a zoo: it converts and verifies every item that is not done, and records each step in the ledger."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from surgery.checkpoint import CONFIG_NAME, load_json, quote, repair_output
from surgery.errors import CheckpointError, SurgeryError, UsageError
from surgery.zoo.engines import EngineName, open_engine
from surgery.zoo.ledger import LedgerState, new_run_id
from surgery.zoo.plan import ZooPlan
from surgery.zoo.schedule import OnEvent, Schedule
from surgery.zoo.summaries import PAGE_MARK, PAGE_NAME, SUMMARY_KIND, SUMMARY_NAME, ZooSummary
from surgery.zoo.zoo import Zoo, locked_ledger

_LARGEST_SUMMARY = 500_000_000
# The mark of a page stands above its table.
_LONGEST_HEAD = 20_000


def run_zoo(
    zoo: Zoo,
    *,
    engine: str = EngineName.local,
    address: str | None = None,
    force: bool = False,
    only_failed: bool = False,
    on_plan: Callable[[ZooPlan], None] | None = None,
    on_event: OnEvent | None = None,
) -> ZooSummary:
    """Run every item that is not done, and return the summary.

    A killed run is resumed: items that failed in it are not tried again until it has ended. The run after that tries
    them again.

    Args:
        zoo: from :func:`open_zoo`.
        engine: ``local`` or ``ray``.
        address: of a Ray cluster; None starts one on this machine.
        force: replace outputs that the ledger does not know or that are out of date.
        only_failed: run only items that failed before.
        on_plan: called with the plan before any work.
        on_event: called with every event of the ledger, and with ``stage``, ``bytes`` and ``tokens`` of running items.

    Raises:
        CheckpointError: the output cannot be written, or its ledger is broken.
        OutputBusyError: another run is working on the zoo.
        UsageError: Ray is asked for and not installed; the output holds a model, or a summary of another program.
    """
    on_event = on_event or (lambda event: None)
    folder = zoo.ledger.parent
    _check_output(zoo)
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"the output {zoo.output} cannot be written: {error.strerror}") from error
    with locked_ledger(zoo) as (ledger, state):
        resumes = state.run is not None and not state.run_ended
        run = str(state.run) if resumes else new_run_id()
        plan = zoo.plan(force=force, only_failed=only_failed, state=state)
        if on_plan is not None:
            on_plan(plan)
        chosen = open_engine(EngineName(engine), zoo.manifest.parallel, zoo.output, address=address)
        schedule = Schedule(
            chosen, ledger, run=run, logs=folder / "logs", retries=zoo.manifest.retries, on_event=on_event
        )
        on_event(ledger.write("run", run=run, engine=chosen.name, resumed=resumes, items=len(plan.rows)))
        _record_without_work(zoo, plan, state, schedule, run)
        if schedule.run(plan.of("ready")):
            on_event(ledger.write("ended", run=run))
    return zoo.summary()


def _check_output(zoo: Zoo) -> None:
    """Other folders may lie beside the outputs, but the summary must not replace files of another program."""
    for name in (CONFIG_NAME, SUMMARY_NAME, PAGE_NAME):
        if (zoo.output / name).exists() and not zoo.ledger.is_file() and not _is_own_summary(zoo.output / name):
            raise UsageError(
                f"the output {quote(str(zoo.output))} was not created by surgery: it holds {name}",
                hint="Choose another folder for `output` in the manifest.",
            )


def _is_own_summary(path: Path) -> bool:
    """Whether an earlier run wrote this summary or page; its ledger may have been moved away since."""
    if path.name == SUMMARY_NAME:
        with contextlib.suppress(SurgeryError):
            return load_json(path, limit=_LARGEST_SUMMARY).get("kind") == SUMMARY_KIND
    elif path.name == PAGE_NAME:
        with contextlib.suppress(OSError), path.open("rb") as file:
            return PAGE_MARK.encode() in file.read(_LONGEST_HEAD)
    return False


def _record_without_work(zoo: Zoo, plan: ZooPlan, state: LedgerState, schedule: Schedule, run: str) -> None:
    """Record the items that need no work: outputs that were complete when a run was killed, and refused items."""
    for item in zoo.items:
        entry = state.entries.get(item.name)
        if entry is not None and entry.status == "started":
            # The item meets the same error and reports it.
            with contextlib.suppress(SurgeryError):
                repair_output(item.output)
    for planned in plan.rows:
        entry = state.entries.get(planned.item.name)
        if planned.state == "done" and (entry is None or entry.status != "done"):
            known = entry if entry is not None and planned.source_fingerprint is None else None
            fingerprint = known.fingerprint if known is not None else planned.fingerprint
            content = {"bytes": planned.source_bytes, "family": planned.family}
            schedule.write("done", planned, fingerprint=fingerprint, recovered=True, **content)
        elif planned.state == "refused" and not (
            entry is not None
            and (entry.status, entry.run, entry.event.get("message")) == ("failed", run, planned.reason)
        ):
            schedule.write("failed", planned, why="refused", message=planned.reason, hint=planned.hint or None)
