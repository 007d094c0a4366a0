"""What all commands share: where output goes, how errors and exit codes come out, progress, and common options.

With ``--json`` one document goes to stdout and everything else to stderr; where a command fails before it has one, the
document is ``{"schema": 1, "kind": "error", "error": {"code", "message", "hint"}}``, and code is the exit code. Without
it results go to stdout and progress to stderr.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from surgery.colours import ERROR, NOTE
from surgery.errors import ExitCode, SurgeryError, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

# Typer carries its own click in new versions and uses the installed one in old ones; its errors have this base.
_ParserError: Any = typer.BadParameter.__mro__[2]

SCHEMA_VERSION = 1
_PACKAGE = Path(__file__).parents[1]

out = Console()
err = Console(stderr=True)

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else on stderr.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks and details.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...", rich_help_panel="Running")]
DtypeOption = Annotated[
    str, typer.Option(help="auto (the checkpoint's), float32, bfloat16, float16.", rich_help_panel="Running")
]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Sequences per forward pass.", rich_help_panel="Running")]
AttentionOption = Annotated[
    str | None,
    typer.Option("--attn-implementation", help="sdpa, eager, flash_attention_2 ...", rich_help_panel="Running"),
]


class Windows(StrEnum):
    """What shares a window of screening."""

    HEAD = "head"
    GROUP = "group"


UnverifiedOption = Annotated[
    bool,
    typer.Option(
        "--allow-unverified",
        help="Of a family that is not in `surgery families`, go on by what its model in transformers shows.",
    ),
]

EventsOption = Annotated[
    Path | None, typer.Option("--events", help="Write each event to this file, one JSON line each.")
]

_settings = {"verbose": False, "quiet": False, "json": False, "emitted": False, "terminated": False}


def setup(*, verbose: bool = False, quiet: bool = False) -> None:
    """Remember ``-v`` and ``-q``, and keep the libraries' own chatter and bars off the screen unless ``-v``."""
    _settings.update(verbose=verbose, quiet=quiet)
    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def silence_transformers() -> None:
    """Its bar for loading weights would be drawn through ours. For commands that run a model: it imports torch."""
    if _settings["verbose"]:
        return
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def emit(kind: str, payload: dict[str, Any]) -> None:
    """Print one result as JSON on stdout: ``{"schema": 1, "kind": kind, ...payload}``."""
    _settings["emitted"] = True
    document = {"schema": SCHEMA_VERSION, "kind": kind, **payload}
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


@contextmanager
def progress(*, force_off: bool = False) -> Iterator[Progress]:
    """A progress bar on stderr with a remaining time, or a line now and then where stderr is no terminal.

    ``-q`` and ``force_off`` keep it silent.
    """
    from surgery.commands.progress import bar

    with bar(err, silent=force_off or _settings["quiet"]) as shown:
        yield shown


@contextmanager
def event_writer(path: Path | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that appends each event to a file as a line of JSON; one that does nothing without a file."""
    if path is None:
        yield lambda event: None
        return
    try:
        # At the end of an earlier run's events, and of nothing else.
        if path.is_file() and path.stat().st_size and not _holds_events(path):
            raise UsageError(
                f"--events {path}: the file holds something else than events, and is left alone.",
                hint="Give the name of a new file.",
            )
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--events {path}: cannot be written: {error.strerror}.") from error
    with file:

        def write(event: Mapping[str, Any]) -> None:
            file.write(json.dumps(event) + "\n")
            file.flush()

        yield write


def _holds_events(path: Path) -> bool:
    with path.open("rb") as file:
        line = file.readline(1_000_000)
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "event" in first


def show_report(document: Mapping[str, Any], folder: Path) -> None:
    """A result on the terminal, and where its report lies."""
    from surgery import reporting

    out.print(reporting.terminal_summary(document))
    out.print()
    out.print(f"report: {folder / 'report.html'}", markup=False, highlight=False, soft_wrap=True)


def next_step(*what: str) -> None:
    """``Next: ...`` for a person who does not know what comes now; not with ``-q``. Several words are one command."""
    if not _settings["quiet"]:
        line = what[0] if len(what) == 1 else " ".join(word if word.isupper() else shlex.quote(word) for word in what)
        out.print(f"Next: {printable(line)}", markup=False, highlight=False, soft_wrap=True)


def printable(text: object) -> str:
    """Text of a stranger for the terminal: control characters, which could steer it, are spelled out."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in str(text))


def run(app: typer.Typer, arguments: list[str] | None) -> int:
    """Run the app; turn every expected error into one message and its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    _settings.update(
        emitted=False, terminated=False, json="--json" in given[: given.index("--") if "--" in given else None]
    )
    try:
        _clean_up_when_terminated()
        command = typer.main.get_command(app)
        _shorten_types(command)
        result = command(arguments, standalone_mode=False)
        code = result if isinstance(result, int) else ExitCode.DONE
    except SurgeryError as error:
        _report(error.exit_code, error.message, error.hint)
        return error.exit_code
    except typer.Exit as error:
        code = error.exit_code
    except _ParserError as error:
        error.show()
        _emit_error(ExitCode.USAGE, error.format_message(), None)
        return ExitCode.USAGE
    except (KeyboardInterrupt, typer.Abort):
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return ExitCode.FAILED
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        if _settings["verbose"]:
            traceback.print_exc()
            _emit_error(ExitCode.FAILED, message, None)
        else:
            _report(ExitCode.FAILED, message, "This is not an expected error; -v shows where it comes from.")
        return ExitCode.FAILED
    if code == ExitCode.INTERRUPTED:  # caught here, or by the parser
        terminated = _settings["terminated"]
        code, word = (ExitCode.TERMINATED, "terminated") if terminated else (ExitCode.INTERRUPTED, "interrupted")
        err.print(word, style=NOTE)
        _emit_error(code, word, None)
    return code


def _clean_up_when_terminated() -> None:
    """SIGTERM ends a command as Ctrl-C does, so that nothing half done is left; the default just kills it."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(*_: object) -> None:
    _settings["terminated"] = True
    raise KeyboardInterrupt


def _shorten_types(command: Any) -> None:
    """In --help: no type beside a switch, and ``<str> ...`` for what may be given again."""
    for parameter in command.params:
        if parameter.metavar is None and getattr(parameter, "is_flag", False):
            parameter.metavar = ""
        elif parameter.metavar is None and getattr(parameter, "multiple", False):
            parameter.metavar = "<str> ..."
    for inner in getattr(command, "commands", {}).values():
        _shorten_types(inner)


def _emit_error(code: int, message: str, hint: str | None) -> None:
    """The document of a command that failed; not after one that the command has given itself."""
    if _settings["json"] and not _settings["emitted"]:
        emit("error", {"error": {"code": code, "message": message, "hint": hint}})


def _report(code: int, message: str, hint: str | None) -> None:
    error = sys.exception()
    if _settings["verbose"] and error is not None:
        # Where in this package: the frames of the parser around it say nothing about the fault.
        own = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(_PACKAGE)]
        sys.stderr.write("Traceback in surgery:\n" + "".join(traceback.format_list(own)))
    _emit_error(code, message, hint)
    err.print("error:", style=ERROR, end=" ")
    err.print(printable(message), markup=False, highlight=False, soft_wrap=True)
    if hint:
        err.print(printable(hint), markup=False, highlight=False, soft_wrap=True)
