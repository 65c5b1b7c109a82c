"""Observing the updates of a metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torchmetrics import Metric


def metric_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns predictions and target that a metric is updated with."""
    preds = args[0] if args else kwargs.get("preds")
    return preds, args[1] if len(args) > 1 else kwargs.get("target")


def tapped(metric: Metric, before: Callable[..., Callable[[], None] | None]) -> Callable[[], None]:
    """Calls `before` with the arguments of each update of a metric, and what it returns afterwards.

    Returns the function that undoes it.
    """
    update = metric.update

    def observed(*args: Any, **kwargs: Any) -> None:
        after = before(*args, **kwargs)
        try:
            update(*args, **kwargs)
        finally:
            if after is not None:
                after()

    metric.__dict__["update"] = observed

    def undo() -> None:
        metric.__dict__["update"] = update

    return undo
