"""Small pieces of HTML. Every function escapes the text that it is given."""

from __future__ import annotations

import base64
from collections.abc import Container, Iterable, Sequence
from html import escape

from lightning_fairprune.report._draw import Picture


def paragraph(text: str, kind: str = "") -> str:
    """Returns a paragraph; nothing for no text."""
    mark = f' class="{kind}"' if kind else ""
    return f"<p{mark}>{escape(text)}</p>\n" if text else ""


def cell(text: str, small: str = "", kind: str = "") -> str:
    """Returns a cell of a table, with a second line in small print."""
    mark = f' class="{kind}"' if kind else ""
    below = f"<small>{escape(small)}</small>" if small else ""
    return f"<td{mark}>{escape(text)}{below}</td>"


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[tuple[str, Sequence[str]]],
    kind: str = "",
    text: Container[str] = (),
) -> str:
    """Returns a table in a box of its own, which scrolls when it is too wide.

    Args:
        caption: what it is, for those who hear the page.
        head: headings of the columns.
        rows: the text of the first column and the cells of the others, as HTML.
        kind: class of the box, besides ``box``.
        text: headings of columns with text, which is not set to the right.
    """
    marked = [(' class="text"' if name in text else "", escape(name)) for name in head]
    columns = "".join(f'<th scope="col"{mark}>{name}</th>' for mark, name in marked)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(cells)}</tr>\n' for first, cells in rows
    )
    return (
        # Without a tab stop, a box that scrolls cannot be scrolled from the keyboard.
        f'<div class="{f"box {kind}".strip()}" role="region" tabindex="0" '
        f'aria-label="{escape(caption)}">\n<table>\n'
        f"<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n</div>\n"
    )


def details(summary: str, content: str) -> str:
    """Returns something that opens on demand; `content` is HTML."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n{content}</details>\n"


def data_uri(png: bytes) -> str:
    """Returns an image as an address."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def figure(picture: Picture) -> str:
    """Returns a figure in two forms, of which a phone shows the narrow one."""
    width, height = picture.size
    caption = picture.plan.caption
    below = f"<figcaption>{escape(caption)}</figcaption>\n" if caption else ""
    return (
        "<figure>\n<picture>\n"
        f'<source media="(max-width: 640px)" srcset="{data_uri(picture.narrow)}">\n'
        f'<img src="{data_uri(picture.wide)}" width="{width}" height="{height}" '
        f'alt="{escape(picture.plan.alt)}">\n</picture>\n{below}</figure>\n'
    )
