"""Selection of the rows of a table, by SQL: for tables that do not fit into memory, `fairprune select`.

DuckDB counts the classes and selects the rows in Parquet or CSV files; only the quotas, K numbers of
`lightning_fairprune.quotas`, are in memory. The rows are those that `lightning_fairprune.select` keeps.
"""

from __future__ import annotations

from lightning_fairprune.table._command import main
from lightning_fairprune.table._random import random_key
from lightning_fairprune.table._record import TableSelection
from lightning_fairprune.table._select import select_table

__all__ = ["TableSelection", "main", "random_key", "select_table"]
