"""Output, errors, exit codes, progress and common options of all commands.

Results go to stdout, progress and notes to stderr. With ``--json`` one document goes to stdout and everything else to
stderr. If a command fails before its document, the document is
``{"schema": 1, "kind": "error", "error": {"code", "message", "hint"}}``, where code is the exit code.
"""

from __future__ import annotations

import json
import logging as standard_logging
import os
import shlex
import shutil
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.colours import ERROR, NOTE
from surgery.commands.next_steps import TEXTS
from surgery.errors import ExitCode, SurgeryError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    out: Console
    err: Console

# Typer carries its own click in new versions and uses the installed one in old ones; its errors have this base.
_ParserError: Any = typer.BadParameter.__mro__[2]

SCHEMA_VERSION = 1
_PACKAGE = Path(__file__).parents[1]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, the rest on stderr.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks and details.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result, no progress.")]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
UnverifiedOption = Annotated[
    bool,
    typer.Option(
        "--allow-unverified",
        help="Accept a family that is not in `surgery families`, by a probe of its model in transformers.",
    ),
]

EventsOption = Annotated[
    Path | None, typer.Option("--events", help="Append each event to this file, as one line of JSON.")
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """``out`` and ``err``, created at the first use, because many commands never need rich."""
        if name not in ("out", "err"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from rich.console import Console

        globals()[name] = made = Console(stderr=name == "err")
        return made


_settings = {"verbose": False, "quiet": False, "json": False, "emitted": False, "terminated": False}
_arguments: list[str] = []  # of the command that runs


def setup(*, verbose: bool = False, quiet: bool = False) -> None:
    """Set ``-v`` and ``-q``; without ``-v``, silence the messages and progress bars of libraries."""
    _settings.update(verbose=verbose, quiet=quiet)
    standard_logging.getLogger("surgery").addHandler(_NOTES)
    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class _Notes(standard_logging.Handler):
    """Shows what the library says by its logger as notes."""

    def emit(self, record: standard_logging.LogRecord) -> None:
        """Show one message."""
        note(record.getMessage())


_NOTES = _Notes()


def silence_transformers() -> None:
    """Silence transformers, whose bars would disturb ours; what :func:`setup` set holds for a later import."""
    if _settings["verbose"]:
        return
    # transformers does not reach it
    standard_logging.getLogger("ContinuousBatchingLogger").setLevel(standard_logging.ERROR)
    if "transformers" in sys.modules:
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
    """A progress bar on stderr with the remaining time, or regular lines if stderr is no terminal.

    ``-q`` and ``force_off`` keep it silent.
    """
    from surgery.commands.progress import bar

    with bar(_here().err, silent=force_off or _settings["quiet"]) as shown:
        yield shown


@contextmanager
def event_writer(path: Path | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that appends each event to a file as a line of JSON; without a path it does nothing."""
    if path is None:
        yield lambda event: None
        return
    try:
        # Append to the events of an earlier run, but to no other file.
        if path.is_file() and path.stat().st_size and not _holds_events(path):
            raise UsageError(
                f"--events {path}: the file exists and has other content than events",
                hint="Pass the name of a new file.",
            )
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--events {path}: cannot be written: {error.strerror}") from error
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
    """Print a result and the path of its report."""
    from surgery import reporting

    console = _here()
    console.out.print(reporting.terminal_summary(document))
    say()
    say(f"report: {folder / 'report.html'}")


def say(line: str = "") -> None:
    """Print one line of a result, without markup and wrapping."""
    sys.stdout.write(line + "\n")


def listing(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print names and values in two columns that fit the terminal."""
    width = shutil.get_terminal_size().columns
    first = max(len(name) for name, _ in rows) + 3
    say(title)
    for name, value in rows:
        lines = textwrap.wrap(printable(value), max(width - first, 20), break_on_hyphens=False) or [""]
        for number, line in enumerate(lines):
            say(f"  {name if number == 0 else '':<{first - 2}}{line}")


def note(text: str) -> None:
    """Print a note to stderr."""
    _to_stderr("note:", NOTE, f" {printable(text)}")


def expect(seconds: float, estimate: str, what: str) -> None:
    """Say before a long command how long it takes, unless ``-q``; a few seconds are not worth a word."""
    from surgery.loading.pace import SHORT

    if seconds >= SHORT and not _settings["quiet"]:
        _to_stderr("time:", NOTE, f" {what} takes {estimate} on this processor, as busy as it is now")


def _to_stderr(label: str, style: str, text: str) -> None:
    """Print a line with a coloured label; rich is imported only for a terminal."""
    if not sys.stderr.isatty():
        sys.stderr.write(f"{label}{text}\n")
        return
    from rich.text import Text

    _here().err.print(Text.assemble((label, style), text), soft_wrap=True)


def _here() -> Any:
    """This module, whose ``out`` and ``err`` are created at the first use."""
    return sys.modules[__name__]


def next_step(*what: str) -> None:
    """Print ``Next: ...``, the next command to run, unless ``-q``; several words are quoted as one command.

    A command that waits for texts is no next command yet: its line says so.
    """
    if not _settings["quiet"]:
        line = what[0] if len(what) == 1 else " ".join(shlex.quote(near(word)) for word in what)
        needs_texts = any(word.rpartition("=")[2] == TEXTS for word in what)
        say(f"{'With texts of yours' if needs_texts else 'Next'}: {printable(line)}")


def near(word: str) -> str:
    """A path below the working folder as people write it, without what they need not write; other words as they are."""
    name, equals, path = word.rpartition("=")
    if path.startswith("/") and Path(path).is_relative_to(Path.cwd()):
        path = str(Path(path).relative_to(Path.cwd()))
    return name + equals + path


def next_run(*added: str, without: Sequence[str] = ("--dry-run",)) -> None:
    """Print the command that runs as the next one: without the options that kept it from work, and with others."""
    next_step("surgery", *(word for word in _arguments if word not in without), *added)


def printable(text: object) -> str:
    """Untrusted text for the terminal: control characters are written as escapes."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in str(text))


def run(app: typer.Typer, arguments: list[str] | None) -> int:
    """Run the app; turn every expected error into one message and its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    # No schema here uses plug-ins of pydantic, and the search reads the metadata of every installed package.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    _arguments[:] = given
    _settings.update(
        emitted=False, terminated=False, json="--json" in given[: given.index("--") if "--" in given else None]
    )
    try:
        _clean_up_when_terminated()
        command = typer.main.get_command(app)
        result = command(arguments, prog_name="surgery", standalone_mode=False)
        code = result if isinstance(result, int) else ExitCode.DONE
    except SurgeryError as error:
        _report(error.exit_code, error.message, error.hint)
        return error.exit_code
    except typer.Exit as error:
        code = error.exit_code
    except _ParserError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return ExitCode.USAGE
        from surgery.commands.usage_errors import usage_error

        wrong = usage_error(error, given)
        _report(wrong.exit_code, wrong.message, wrong.hint)
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
            _report(ExitCode.FAILED, message, "This error is not expected. Pass -v to see its origin.")
        return ExitCode.FAILED
    if code == ExitCode.INTERRUPTED:  # from here, or from the parser
        terminated = _settings["terminated"]
        code, word = (ExitCode.TERMINATED, "terminated") if terminated else (ExitCode.INTERRUPTED, "interrupted")
        _to_stderr(word, NOTE, "")
        _emit_error(code, word, None)
    return code


def _clean_up_when_terminated() -> None:
    """Make SIGTERM end a command as Ctrl-C does, which cleans up; the default would kill it."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(*_: object) -> None:
    _settings["terminated"] = True
    raise KeyboardInterrupt


def _emit_error(code: int, message: str, hint: str | None) -> None:
    """Print the document of a failed command, unless the command has already printed one."""
    if _settings["json"] and not _settings["emitted"]:
        emit("error", {"error": {"code": code, "message": message, "hint": hint}})


def _report(code: int, message: str, hint: str | None) -> None:
    error = sys.exception()
    if _settings["verbose"] and error is not None:
        # Only frames of this package, without those of the parser.
        own = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(_PACKAGE)]
        sys.stderr.write("Traceback in surgery:\n" + "".join(traceback.format_list(own)))
    _emit_error(code, message, hint)
    _to_stderr("error:", ERROR, f" {printable(message)}")
    if hint:
        sys.stderr.write(printable(hint) + "\n")
