"""What all metrics on class counts share: everything but the formula."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_fairprune.counts import ClassCounts, Counting
from lightning_fairprune.metrics import _plot


class CountMetric(Metric):
    """Counts right predictions per class, as `ClassRecall` documents; a subclass derives its value from the counts.

    The one state is an int64 tensor, summed over ranks: see `Counting`. It is read once, on the host, in
    `compute`; `update` never waits for the device.
    """

    is_differentiable = False
    higher_is_better: bool | None = None
    full_state_update = False
    plot_lower_bound: float | None = None
    plot_upper_bound: float | None = None
    plot_legend_name = "Class"

    per_class: ClassVar[bool] = False

    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int | None = None,
        top_k: int = 1,
        num_attributes: int | None = None,
        class_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._counting = Counting(num_classes, ignore_index, top_k, num_attributes)
        size = self._counting.size
        if class_names is not None and len(class_names) != size:
            raise ValueError(
                f"`class_names` must name each of {size} classes (or groups), got {len(class_names)}."
            )
        self.class_names = None if class_names is None else tuple(class_names)
        self._result_dtype = torch.get_default_dtype()
        # A MetricCollection merges metrics whose states look alike after the first batch, where
        # other arguments may not have shown yet: only those that count alike share a name.
        self._state = self._counting.name
        self.add_state(self._state, self._counting.zeros(), dist_reduce_fx="sum")

    @property
    def num_classes(self) -> int:
        """C."""
        return self._counting.num_classes

    @property
    def tp(self) -> Tensor:
        """Right predictions of each class (or group) so far on this rank, int64 [K]."""
        return self._counting.parts(self._count)[0]

    @property
    def support(self) -> Tensor:
        """Samples of each class (or group) so far on this rank, int64 [K]."""
        return self._counting.parts(self._count)[1]

    @property
    def _count(self) -> Tensor:
        count: Tensor = getattr(self, self._state)
        return count

    def update(self, preds: Tensor, target: Tensor, attribute: Tensor | None = None) -> None:
        """Adds one batch; values out of range raise in `compute`.

        Args:
            preds: Logits or probabilities, floating point [B, C] or [B, C, ...], or class ids, [B] or
                [B, ...]. Of equal values the first counts as highest.
            target: Class ids in [0, C) or `ignore_index`, [B] or [B, ...].
            attribute: Attribute ids in [0, A), of the shape of `target`; with `num_attributes` only.

        Raises:
            TypeError: If a tensor has the wrong dtype.
            ValueError: If shapes do not fit.
        """
        slots = self._counting.slots(preds, target, attribute)
        count = self._count
        if count.is_inference() and not torch.is_inference_mode_enabled():
            # Reset by Lightning at the end of a validation; such tensors cannot be written to outside.
            count = count.clone()
            setattr(self, self._state, count)
        count.index_add_(0, slots, torch.ones_like(slots))

    def compute(self) -> Tensor:
        """Returns the value over all batches and ranks.

        Raises:
            ValueError: If a label, an attribute or a prediction was out of range or not finite.
        """
        value = self._derive(self._counting.read(self._count))
        if value.is_floating_point():
            value = value.to(self._result_dtype)
        return value.to(self.device)

    def _derive(self, counts: ClassCounts) -> Tensor:
        raise NotImplementedError

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Draws the value, or a list of values as steps; returns figure and axes.

        Args:
            val: What `compute` or `forward` returned, once or several times; None computes it.
            ax: Axes to draw in; None makes a figure.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        _plot.check_matplotlib()
        if not self.per_class:
            return self._plot(val, ax)
        val = self.compute() if val is None else val
        names = self.class_names or self._numbers()
        title = type(self).__name__
        if isinstance(val, Tensor):
            return _plot.classes(val, names, title, ax)
        return _plot.steps(val, names, title, ax)

    def _numbers(self) -> tuple[str, ...]:
        attributes = self._counting.num_attributes
        if attributes is None:
            return tuple(str(k) for k in range(self.num_classes))
        return tuple(f"{k}, {a}" for k in range(self.num_classes) for a in range(attributes))

    def set_dtype(self, dst_type: str | torch.dtype) -> CountMetric:
        """Sets the floating point dtype of the result, float32 by default; others raise TypeError."""
        if not isinstance(dst_type, torch.dtype) or not dst_type.is_floating_point:
            raise TypeError(f"`dst_type` must be a floating point torch.dtype, got {dst_type}.")
        self._result_dtype = dst_type
        return self

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(compute)
        def shaped() -> Tensor:  # torchmetrics makes a number of [1], which is what K = 1 has
            value: Tensor = wrapped()
            return value.reshape(-1) if self.per_class else value

        return shaped
