"""Kept indices as a Parquet file of one column, for tools that cannot read safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_fairprune._files import understanding, write_whole

KEY = b"lightning_fairprune.Selection"  # of the settings as JSON in the metadata of the file


def write_indices(
    path: str | os.PathLike[str], indices: Tensor, settings: Mapping[str, object]
) -> None:
    """Write the column ``index``, and the settings as metadata of the file."""
    pa, pq = _pyarrow("to_parquet")
    table = pa.table({"index": indices.numpy()}).replace_schema_metadata(
        {KEY: json.dumps(settings)}
    )
    write_whole(path, lambda name: pq.write_table(table, name, write_page_checksum=True))


def read_indices(path: str | os.PathLike[str]) -> tuple[Tensor, dict[str, Any]]:
    """Return the one integer column of a file, int64 and sorted, and the settings or {}."""
    pa, pq = _pyarrow("from_parquet")
    name = os.fspath(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {name!r}.")
    try:
        table = pq.read_table(name, partitioning=None, page_checksum_verification=True)
        kinds = {field.name: field.type for field in table.schema}
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise ValueError(
            f"{name!r} is not a Parquet file, or it is truncated ({error}); copy or write it again."
        ) from error
    if table.num_columns != 1 or not all(map(pa.types.is_integer, kinds.values())):
        found = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
        raise ValueError(
            f"{name!r} must have one column of integers, the indices of the kept samples, "
            f"got {found or 'no column'}."
        )
    column = table.column(0)
    if column.null_count:
        raise ValueError(f"{name!r} must hold an index in every row, {column.null_count} are null.")
    try:
        values = column.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{name!r} holds an index that is not int64 ({error}).") from error
    indices = torch.tensor(values, dtype=torch.int64).sort().values
    settings = (table.schema.metadata or {}).get(KEY)
    if settings is None:
        return indices, {}
    with understanding(path):
        found = json.loads(settings)
        whole = {name: int(found[name]) for name in ("num_samples", "num_classes", "seed")}
        return indices, whole | {"keep": str(found["keep"])}


def _pyarrow(method: str) -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f"{method} needs pyarrow: pip install 'lightning-fairprune[parquet]'."
        ) from error
    return pa, pq
