"""Which rows of a table to keep, by SQL: tables that do not fit into memory, `fairprune select`.

Counting classes and choosing rows are SQL on Parquet or CSV files, run by DuckDB; quotas are those
of `lightning_fairprune.quotas`, K numbers in memory. The rows are those that
`lightning_fairprune.select` keeps, one for one.
"""

from __future__ import annotations

from lightning_fairprune.table._command import main
from lightning_fairprune.table._random import random_key
from lightning_fairprune.table._record import TableSelection
from lightning_fairprune.table._select import select_table

__all__ = ["TableSelection", "main", "random_key", "select_table"]
