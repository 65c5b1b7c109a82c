"""Charts of one value per class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_MOST_NAMED = 40  # more bars than this are a curve
_FEW = 3  # lowest and highest classes named in a curve


def check_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ModuleNotFoundError(
            "Plot function expects `matplotlib` to be installed. Please install with "
            "`pip install 'lightning-fairprune[report]'`"
        ) from error


def classes(value: Tensor, names: Sequence[str], title: str, ax: Any) -> tuple[Any, Any]:
    """Draws one value per class, sorted: bars, or a curve of many with its ends named."""
    value = value.detach().cpu().double().reshape(-1)
    order = _sorted(value)
    ax = _axes(ax, height=1 + 0.22 * max(len(order), 8) if len(order) <= _MOST_NAMED else 4.0)
    values = value[order].tolist()
    if len(order) <= _MOST_NAMED:
        ax.barh(range(len(order)), values)
        ax.set_yticks(range(len(order)), [names[k] for k in order])
        ax.invert_yaxis()  # the lowest on top
        ax.set_xlabel(title)
        ax.axvline(0, color="black", linewidth=0.8)
    else:
        ax.plot(range(len(order)), values)
        ax.set_xlabel("classes, sorted")
        ax.set_ylabel(title)
        ends = [("lowest", order[:_FEW]), ("highest", order[: -_FEW - 1 : -1])]
        text = [f"{end}:\n" + "\n".join(names[k] for k in ks) for end, ks in ends]
        ax.text(0.03, 0.96, "\n\n".join(text), transform=ax.transAxes, va="top")
    missing = len(value) - len(order)
    ax.set_title(f"left out, without a value: {missing}" if missing else "")
    return ax.figure, ax


def steps(values: Sequence[Tensor], names: Sequence[str], title: str, ax: Any) -> tuple[Any, Any]:
    """Draws the range of the classes over steps, and those that end lowest and highest by name."""
    value = torch.stack([v.detach().cpu().double().reshape(-1) for v in values])
    ax = _axes(ax, height=4.0)
    seen = ~value.isnan()
    low = value.masked_fill(~seen, torch.inf).amin(1)
    high = value.masked_fill(~seen, -torch.inf).amax(1)
    x = range(len(value))
    ax.fill_between(x, low.tolist(), high.tolist(), alpha=0.2, where=seen.any(1).tolist())
    last = _sorted(value[-1])
    for k in dict.fromkeys([*last[: -_FEW - 1 : -1], *last[_FEW - 1 :: -1]]):
        ax.plot(x, value[:, k].tolist(), marker="o", label=names[k])
    if last:
        ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    ax.set_xticks(x if len(x) <= 20 else x[:: -(-len(x) // 10)])
    ax.set_xlabel("Step")
    ax.set_ylabel(title)
    return ax.figure, ax


def _sorted(value: Tensor) -> list[int]:
    order = value.argsort(stable=True)
    kept: list[int] = order[~value[order].isnan()].tolist()
    return kept


def _axes(ax: Any, height: float) -> Any:
    import matplotlib.pyplot as plt

    return ax if ax is not None else plt.subplots(figsize=(6.4, height), layout="constrained")[1]
