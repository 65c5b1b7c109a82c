"""The callbacks as callbacks of `pytorch_lightning` too.

In a private module, because LightningCLI finds classes by their short names, and `DataPruning` must keep meaning
the one of `lightning_fairprune` where both are imported.
"""

# mypy: disable-error-code="misc"
# The two Callback classes type their hooks with a Trainer each.

from __future__ import annotations

import pytorch_lightning

from lightning_fairprune import callbacks

__all__ = ["ClassWeighting", "DataPruning", "RecallMonitor", "RecallOffsets", "WeightPruning"]


class DataPruning(callbacks.DataPruning, pytorch_lightning.Callback):
    """:class:`lightning_fairprune.DataPruning`, also a Callback of ``pytorch_lightning``.

    Example:
        >>> isinstance(DataPruning(density=0.3, warmup_epochs=10), pytorch_lightning.Callback)
        True
    """


class WeightPruning(callbacks.WeightPruning, pytorch_lightning.Callback):
    """:class:`lightning_fairprune.WeightPruning`, also a Callback of ``pytorch_lightning``."""


class RecallMonitor(callbacks.RecallMonitor, pytorch_lightning.Callback):
    """:class:`lightning_fairprune.RecallMonitor`, also a Callback of ``pytorch_lightning``."""


class RecallOffsets(callbacks.RecallOffsets, pytorch_lightning.Callback):
    """:class:`lightning_fairprune.RecallOffsets`, also a Callback of ``pytorch_lightning``."""


class ClassWeighting(callbacks.ClassWeighting, pytorch_lightning.Callback):
    """:class:`lightning_fairprune.ClassWeighting`, also a Callback of ``pytorch_lightning``."""
