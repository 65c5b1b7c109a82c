"""Groups of samples that have no labels: parts of a class that lie apart and are learnt worse.

Groups that are labelled are a matter of `recalls.groups`.
"""

from __future__ import annotations

from lightning_fairprune.groups._discover import assign, discover
from lightning_fairprune.groups._discovered import Discovered

__all__ = ["Discovered", "assign", "discover"]
