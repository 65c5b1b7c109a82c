"""A figure of parts stacked from the top, in inches, without cut or overlapping text."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours of Okabe and Ito, distinct for colour-blind readers, without yellow, which is too pale on white.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
DARK, GREY, PALE, FAINT = "#333333", "#767676", "#D9D9D9", "#EBEBEB"
# Set on each axis: ticks created at drawing time would use the caller's settings.
GRID: dict[str, Any] = {"color": FAINT, "linewidth": 0.8}

WIDE, NARROW = 9.0, 4.2  # inches: a desktop page, a phone of 390 pixels
FONT, TITLE = 10, 12  # points, at either width
LINE = 1.3 * FONT / 72  # inches from one line of text to the next
MOST = 2_000  # characters of a paragraph: drawing takes as long as the text
PAD = 0.08  # inches around the whole
TICKS = 0.27  # inches for the numbers below an axis

LEGEND: dict[str, Any] = {"loc": "upper left", "frameon": False, "labelcolor": DARK}
LEGEND |= {"borderpad": 0.0, "borderaxespad": 0.0, "handlelength": 1.8}
LEGEND |= {"columnspacing": 1.2, "labelspacing": 0.35}


@contextlib.contextmanager
def paper(narrow: bool) -> Iterator[Sheet]:
    """Yields an empty sheet, with the default settings of matplotlib and ours, and restores the caller's."""
    try:
        import matplotlib
        from matplotlib import style
    except ImportError as error:
        raise ImportError(
            "figures need matplotlib: pip install 'lightning-fairprune[report]'."
        ) from error

    fonts = {key: matplotlib.rcParams[key] for key in ("font.family", "font.sans-serif")}
    ours: dict[str, Any] = {
        **fonts,  # the caller's: they may be needed for the letters of the class names
        "font.size": FONT,
        "text.parse_math": False,  # a class may be called "$5 note, $10 note"
        "axes.edgecolor": GREY,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
    }
    with style.context(["default", ours]):
        yield Sheet(narrow)


class Sheet:
    """Stacks text, legends and axes; `finish` sets the resulting height."""

    def __init__(self, narrow: bool) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.narrow = narrow
        self.width = NARROW if narrow else WIDE
        self.inner = self.width - 2 * PAD
        self.room = 1.5 if narrow else 2.9  # for a name
        self.chart: Figure = Figure(figsize=(self.width, 1.0), dpi=100)
        canvas: Any = FigureCanvasAgg(self.chart)
        self._renderer = canvas.get_renderer()
        self._used = PAD
        self._texts: list[tuple[Any, float, float]] = []
        self._legends: list[tuple[Any, float, float]] = []
        self._axes: list[tuple[Any, float, float, float, float]] = []

    def measure(self, text: str, bold: bool = False) -> float:
        """Returns the width of one line in inches."""
        from matplotlib.font_manager import FontProperties

        font = FontProperties(size=TITLE, weight="bold") if bold else FontProperties(size=FONT)
        return float(self._renderer.get_text_width_height_descent(text, font, False)[0]) / 100

    def wrap(self, text: str, width: float, bold: bool = False, most: int = 99) -> str:
        """Returns the text in lines of at most `width` inches, at most `most` of them."""
        lines = [""]
        for word in text[:MOST].split():
            longer = f"{lines[-1]} {word}".strip()
            if not lines[-1] or self.measure(longer, bold) <= width:
                lines[-1] = longer
            else:
                lines.append(word)
        if len(lines) > most:
            lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
        return "\n".join(self._cut(line, width, bold) for line in lines)

    def _cut(self, line: str, width: float, bold: bool) -> str:
        if len(line) < MOST and self.measure(line, bold) <= width:
            return line
        low, high = 0, min(len(line), MOST)  # characters that fit, and that do not
        while high - low > 1:
            middle = (low + high) // 2
            if self.measure(f"{line[:middle]}…", bold) <= width:
                low = middle
            else:
                high = middle
        return f"{line[:low].rstrip()}…"

    def gap(self, inches: float) -> None:
        self._used += inches

    def text(self, text: str, bold: bool = False) -> None:
        """Adds a wrapped paragraph, unless it is empty."""
        if not text:
            return
        text = "\n".join(self.wrap(part, self.inner, bold) for part in text.split("\n"))
        item = self.chart.text(0, 0, text, va="top", ha="left", linespacing=1.15, color=DARK)
        item.set(size=TITLE if bold else FONT, weight="bold" if bold else "normal")
        self._texts.append((item, PAD, self._used))
        self._used += item.get_window_extent(self._renderer).height / 100 + 0.08

    def title(self, text: str) -> None:
        """Adds a bold paragraph."""
        self.text(text, bold=True)

    def legend(self, handles: Sequence[Any]) -> None:
        """Adds a legend in as many columns as fit."""
        for handle in handles:
            handle.set_label(self.wrap(handle.get_label(), self.inner - 0.6))
        for columns in range(len(handles), 0, -1):
            legend = self.chart.legend(handles=handles, ncols=columns, **LEGEND)
            box = legend.get_window_extent(self._renderer)
            if box.width / 100 <= self.inner or columns == 1:
                self._legends.append((legend, PAD, self._used))
                self._used += box.height / 100 + 0.1
                return
            legend.remove()

    def axes(
        self,
        height: float,
        *,
        left: float = 0.65,
        right: float = 0.25,
        above: Sequence[str] = ("",),
        bold: bool = False,
    ) -> list[Any]:
        """Adds a row of axes with `left` and `right` inches beside each, and the label of its vertical axis above."""
        cell = self.width / len(above)
        self._used += LINE + 0.1 if any(above) else 0.0
        found = []
        for i, title in enumerate(above):
            axis = self.chart.add_axes((0.1, 0.1, 0.5, 0.5), label=f"{len(self._axes)}")
            axis.tick_params(labelsize=FONT, color=GREY, labelcolor=DARK, length=3)
            weight = "bold" if bold else "normal"
            style: dict[str, Any] = {"fontsize": FONT, "color": DARK, "fontweight": weight}
            axis.set_title(title, loc="left", pad=5, **style)
            self._axes.append((axis, i * cell + left, self._used, cell - left - right, height))
            found.append(axis)
        self._used += height
        return found

    def below(self, axes: Sequence[Any], label: str) -> None:
        """Labels the horizontal axis of the axes just added."""
        width = self._axes[-1][3] + 0.3
        text = self.wrap(label, width)
        for axis in axes:
            axis.set_xlabel(text, color=DARK, fontsize=FONT, labelpad=3)
        self._used += TICKS + (1 + text.count("\n")) * LINE + 0.08

    def size_of(self, axis: Any) -> tuple[float, float]:
        """Returns width and height in inches."""
        return next((w, h) for known, _, _, w, h in self._axes if known is axis)

    def finish(self) -> Figure:
        height = self._used + PAD
        self.chart.set_size_inches(self.width, height)
        for item, x, y in self._texts:
            item.set_position((x / self.width, 1 - y / height))
        for legend, x, y in self._legends:
            anchor = (x / self.width, 1 - y / height)
            legend.set_bbox_to_anchor(anchor, transform=self.chart.transFigure)
        for axis, x, y, w, h in self._axes:
            axis.set_position((x / self.width, 1 - (y + h) / height, w / self.width, h / height))
        return self.chart
