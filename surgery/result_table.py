"""Results as tables: printed, in a notebook, and as a data frame."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from surgery.errors import UsageError

if TYPE_CHECKING:
    import pandas

# Below this, a number is shown with four decimals, as losses need them.
_LARGE = 1000


@dataclass(frozen=True)
class ResultTable:
    """Rows of plain values under named columns.

    Attributes:
        title: above the rows.
        columns: their names.
        rows: numbers, strings or None.
        notes: sentences around the rows; the first is what a reader should know first.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...] = ()

    def text(self, width: int = 120) -> str:
        """The table for a terminal; no text is read as markup."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self.title), title_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(Text(column), justify="right" if self._holds_numbers(number) else "left")
        for row in self.rows:
            table.add_row(*(Text(shown(value)) for value in row))
        console = Console(width=width, color_system=None, force_jupyter=False)
        with console.capture() as captured:
            for note in self.notes[:1]:
                console.print(Text(note))
            console.print(table)
            for note in self.notes[1:]:
                console.print(Text(note))
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def html(self) -> str:
        """The table for a notebook; all text is escaped."""
        heads = "".join(f"<th>{escape(column)}</th>" for column in self.columns)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(shown(value))}</td>" for value in row) + "</tr>" for row in self.rows
        )
        first = "".join(f"<p><strong>{escape(note)}</strong></p>" for note in self.notes[:1])
        others = "".join(f"<p>{escape(note)}</p>" for note in self.notes[1:])
        caption = f"<caption>{escape(self.title)}</caption>"
        return f"{first}<table>{caption}<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>{others}"

    def frame(self) -> pandas.DataFrame:
        """The rows as they are, without rounding.

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UsageError(
                "a data frame needs pandas, which is not installed", hint="Run: pip install pandas"
            ) from error
        return pandas.DataFrame(list(self.rows), columns=list(self.columns))

    def _holds_numbers(self, column: int) -> bool:
        return any(isinstance(row[column], int | float) for row in self.rows)


def shown(value: object) -> str:
    """A value in a cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:z.4f}" if abs(value) < _LARGE else f"{value:,.0f}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


class ShownAsTable:
    """A result that prints as a table, shows as HTML in a notebook, and gives a data frame."""

    @abstractmethod
    def to_table(self) -> ResultTable:
        """The result as rows of plain values."""

    def to_frame(self) -> pandas.DataFrame:
        """The rows of :meth:`to_table` as a pandas data frame.

        Raises:
            UsageError: pandas is not installed.
        """
        return self.to_table().frame()

    def __str__(self) -> str:
        return self.to_table().text()

    def _repr_html_(self) -> str:
        """For notebooks."""
        return self.to_table().html()


class ShownAsRecord(ShownAsTable):
    """A result whose table has one row for each of its values: those of :meth:`to_dict`, by their names."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain data."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What the values are of."""

    def to_table(self) -> ResultTable:
        """One row for each value."""
        return record_table(self.title, self.to_dict())


def record_table(title: str, values: Mapping[str, Any], notes: tuple[str, ...] = ()) -> ResultTable:
    """Plain data as names and values; mappings are flattened, and of a list its elements are named."""
    return ResultTable(title, ("what", "value"), tuple(_rows(values)), notes)


def _rows(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        what = f"{above} {name}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            yield from _rows(value, what)
        elif isinstance(value, list | tuple):
            yield what, ", ".join(map(str, value))
        else:
            yield what, value
