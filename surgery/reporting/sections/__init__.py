"""How the sections of a result are shown, by their kind: pictures, the table of the terminal, the key figure."""

from types import MappingProxyType

from surgery.reporting.sections import attention, generation, loss, retrieval, speed, tasks
from surgery.reporting.sections.tables import plain_table
from surgery.reporting.sections.view import SectionView

VIEWS: MappingProxyType[str, SectionView] = MappingProxyType(
    {
        "loss": SectionView(loss.table, loss.drawings, loss.key_figure, loss.note),
        "sliding": SectionView(loss.table, key_figure=loss.key_figure),
        "retrieval": SectionView(retrieval.table, retrieval.drawings, retrieval.key_figure),
        "tasks": SectionView(tasks.table),
        "generation": SectionView(generation.table),
        "attention": SectionView(attention.table, attention.drawings, is_neutral=True),
        "speed": SectionView(speed.table),
    }
)
_PLAIN = SectionView(plain_table)


def view_of(kind: str) -> SectionView:
    """The view of a kind of section; one with plain tables for a kind that has none of its own."""
    return VIEWS.get(kind, _PLAIN)
