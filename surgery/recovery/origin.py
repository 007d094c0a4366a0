"""The source of a run's model, and the conversion that made the model of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from surgery.anatomy import Anatomy, read_anatomy
from surgery.checkpoint import Checkpoint, Source, open_checkpoint, place_file
from surgery.checkpoint.placement import PlacementMode
from surgery.conversion.execution import execute
from surgery.conversion.other_options import with_other_options
from surgery.conversion.plan import Plan, PreparedPlan
from surgery.conversion.records import plan_value, read_plan
from surgery.conversion.reversion import restored_files
from surgery.conversion.source_search import find_source
from surgery.errors import CheckpointError
from surgery.recovery.controls import control_operations
from surgery.recovery.layout import Variant


@dataclass(frozen=True)
class Origin:
    """A source and a conversion of it, from which the checkpoint of a control is made.

    Attributes:
        plan: of the conversion.
        anatomy: of the source or the converted model.
        source: as the conversion recorded it; its folder may be missing.
        folder: where the files of the source are.
        files: name in ``folder`` -> name in the source; None if the folder is the source.
    """

    plan: Plan
    anatomy: Anatomy
    source: Source
    folder: Path
    files: Mapping[str, str] | None = None

    @property
    def address(self) -> str:
        """How other programs find the source: the hub id, or the folder."""
        return self.source.hub_id or str(self.source.folder)

    def base(self, control: Variant, folder: Path) -> tuple[Source, Checkpoint]:
        """The checkpoint that the trained tensors of a control belong to: the source, or another conversion of it.

        Args:
            control: its name.
            folder: a new folder for what has to be written; it is needed until the control has its checkpoint.
        """
        checkpoint = self._source(folder / "source")
        if control == "untouched":
            return self.source, checkpoint
        prepared = PreparedPlan(self.plan_of(control), self.source, checkpoint, self.anatomy)
        converted = folder / "converted"
        _place_cheaply(lambda mode: execute(prepared, converted, mode=mode, force=True))
        operations = [str(options["name"]) for options in prepared.plan.operations]
        name = "-".join((self.source.name.rpartition("/")[2], *operations))
        return Source(converted, name, None, None), open_checkpoint(converted)

    def plan_of(self, control: Variant) -> Plan:
        """The plan of the conversion with the options of a control, other than ``untouched``.

        Raises:
            SurgeryError: options are not valid, or an operation has no such control.
        """
        return with_other_options(self.plan, control_operations(control, self.plan.operations), self.anatomy)

    def _source(self, folder: Path) -> Checkpoint:
        files = self.files
        if files is None:
            return open_checkpoint(self.folder)

        def place(mode: PlacementMode) -> None:
            shutil.rmtree(folder, ignore_errors=True)
            for name, target in files.items():
                place_file(self.folder / name, folder / target, mode)

        _place_cheaply(place)
        return open_checkpoint(folder)


def find_origin(checkpoint: Checkpoint, conversion: PreparedPlan | None) -> Origin:
    """The origin of the model of a run; nothing is written.

    Args:
        checkpoint: of the model.
        conversion: that the recipe asks for; None if the model was converted before.

    Raises:
        SurgeryError: the source is no longer in the converted model.
    """
    if conversion is not None:
        return Origin(conversion.plan, conversion.anatomy, conversion.source, conversion.checkpoint.folder)
    folder = checkpoint.folder
    files, plan = restored_files(folder), plan_value(read_plan(folder))
    name, commit, hub_id = str(plan.source["name"]), plan.source["commit"], plan.source["hub_id"]
    source = Source(Path(find_source(folder) or name), name, commit, hub_id)
    return Origin(plan, read_anatomy(checkpoint), source, folder, files)


def _place_cheaply(place: Callable[[PlacementMode], object]) -> None:
    """Place files that are deleted soon and never changed: as hard links, or else in the way that the disk allows."""
    try:
        place("link")
    except CheckpointError:
        place("auto")
