"""``surgery doctor``: versions, devices, disks, and the sizes of models that this machine can run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from surgery.colours import ERROR, LABEL, NOTE
from surgery.commands import console
from surgery.commands.help import CommandHelp, command_app
from surgery.errors import ExitCode

if TYPE_CHECKING:
    from surgery.loading.machine import Machine


app = command_app()


@app.command(cls=CommandHelp)
def doctor(as_json: console.JsonOption = False, verbose: console.VerboseOption = False) -> None:
    """Check this machine: versions, devices, disks.

    Shows versions, devices, disks and the sizes of models that fit. Exit code 1 if there is a problem.
    """
    from surgery.loading.machine import examine

    console.setup(verbose=verbose)
    machine = examine()
    if as_json:
        console.emit("doctor", machine.to_dict())
    else:
        _print(machine)
    if machine.problems:
        raise typer.Exit(ExitCode.FAILED)


def _print(machine: Machine) -> None:
    from rich.table import Table
    from rich.text import Text

    from surgery.checkpoint.disk import format_size

    table = Table(show_header=False, box=None, pad_edge=False)
    packages = ", ".join(f"{package.name} {package.version or 'missing'}" for package in machine.packages)
    there = [f"{package.name} {package.version}" for package in machine.optional if package.version]
    absent = [f"{package.name} ({package.purpose})" for package in machine.optional if not package.version]
    rows = [
        ("surgery", f"{machine.surgery}, Python {machine.python}, {machine.system}"),
        ("packages", packages),
        ("optional", ", ".join(there) or "none"),
        ("not installed", ", ".join(absent) or "none"),
        ("families", f"verified with transformers {', '.join(machine.verified_with)}"),
        ("attention", ", ".join(machine.attention)),
    ]
    for device in machine.devices:
        fits = machine.can_run[device.name]
        sizes = ", ".join(f"{count / 1e9:.1f} B parameters in {dtype}" for dtype, count in fits.items())
        free = f"{format_size(device.free)} of {format_size(device.memory)} free"
        rows.append((device.name, f"{device.description}; {free}; fits about {sizes}"))
    for place in machine.places:
        free = "unknown" if place.free is None else format_size(place.free)
        how = f"unchanged shards can be {' or '.join(place.sharing)}" if place.writable else "not writable"
        rows.append((place.purpose, f"{place.path}: {free} free; {how}"))
    rows += [("settings", ", ".join(f"{name}={value}" for name, value in machine.settings.items()) or "none")]
    for name, value in rows:
        table.add_row(Text(name, style=LABEL), Text(console.printable(value)))
    console.out.print(table)
    for note in machine.notes:
        console.err.print("note:", style=NOTE, end=" ")
        console.err.print(note, markup=False, highlight=False, soft_wrap=True)
    for problem in machine.problems:
        console.err.print("problem:", style=ERROR, end=" ")
        console.err.print(console.printable(problem), markup=False, highlight=False, soft_wrap=True)
