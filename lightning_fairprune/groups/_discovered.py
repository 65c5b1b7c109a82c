"""Groups to discover in a fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning_fairprune.groups._discover import check_options


@dataclass(frozen=True, kw_only=True)
class Discovered:
    """Groups that DataPruning discovers at the end of the warm-up, for its `group_by`.

    A pass over the training set in eval mode gives the features, the warm-up the dynamics, `discover` the groups. A
    pass over the validation set gives its samples the group whose mean features are nearest in their class (`assign`)
    and the first recalls. They keep it from then on, whatever the network learns, because a group that followed the
    features of the trained network would follow its errors. If no class is split, the fit is that without groups.

    Args:
        most: largest number of groups in a class.
        min_size: fewest samples in a group.
        separation: how far apart the groups of a class must lie, in [0, 1].
        gap: smallest difference in correctness between the groups of a class, in [0, 1].
        layer: name of the layer whose input are the features; None takes the last linear layer.
        dataloader: loader over the training samples without augmentation, as of :class:`~lightning_fairprune.ScorePass`.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> Discovered(most=3).min_size
        20
    """

    most: int = 2
    min_size: int = 20
    separation: float = 0.65
    gap: float = 0.2
    layer: str | None = None
    dataloader: str | Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        check_options(self.most, self.min_size, self.separation, self.gap)
