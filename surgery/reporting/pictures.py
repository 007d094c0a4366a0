"""Pictures that a notebook shows, and that a folder can hold."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from surgery.reporting.drawing import Drawing
from surgery.reporting.report import replace_file


@dataclass(frozen=True)
class Picture:
    """One picture: its name, the line below it, its description in words, and its PNG."""

    name: str
    caption: str
    alt: str
    png: bytes = field(repr=False)


class Pictures(tuple[Picture, ...]):
    """Pictures, in order."""

    def save(self, folder: str | Path) -> list[Path]:
        """Write each as ``NAME.png`` into a folder, which is created."""
        return [replace_file(Path(folder) / f"{picture.name}.png", picture.png) for picture in self]

    def _repr_html_(self) -> str:
        """For notebooks."""
        return "".join(
            f'<figure><img alt="{escape(picture.alt)}" style="max-width: 100%" '
            f'src="data:image/png;base64,{base64.b64encode(picture.png).decode("ascii")}">'
            f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
            for picture in self
        )


def pictures_of(drawings: Iterable[Drawing]) -> Pictures:
    """The pictures of a report."""
    return Pictures(Picture(drawing.stem, drawing.caption, drawing.alt, drawing.png) for drawing in drawings)
