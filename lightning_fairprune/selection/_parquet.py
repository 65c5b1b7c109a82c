"""Kept indices as a Parquet file of one column, for tools that cannot read safetensors."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_fairprune._files import (
    VERSION,
    json_text,
    parsed_json,
    understanding,
    warn_of_old,
    whole_number,
    write_whole,
)

# In the metadata of the file: the settings as JSON, and the version, which says that they must be there.
OURS = b"lightning_fairprune."
# The same in another part of the metadata, in case the settings are lost as a whole.
ID, OUR_ID = b"PARQUET:field_id", b"405057993"
KEY, MARK = OURS + b"Selection", OURS + b"version"


def write_indices(
    path: str | os.PathLike[str], indices: Tensor, settings: Mapping[str, object]
) -> None:
    """Write the column ``index``, and the settings as metadata of the file."""
    pa, pq = _pyarrow("to_parquet")
    about = json_text("Selection", {**settings, "indices": _sum(indices)})
    column = pa.field("index", pa.int64(), metadata={ID: OUR_ID})
    schema = pa.schema([column], metadata={KEY: about, MARK: VERSION})
    table = pa.table({"index": indices.numpy()}, schema=schema)
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
    metadata = table.schema.metadata or {}
    if not any(key.startswith(OURS) for key in metadata):
        ours = (table.schema.field(0).metadata or {}).get(ID) == OUR_ID
        if ours or OURS in Path(path).read_bytes():  # Parquet has no checksum of its metadata
            raise ValueError(
                f"{name!r} cannot be loaded: it is damaged (its settings cannot be read); copy or write it again."
            )
        return indices, {}
    with understanding(path):
        about: dict[str, Any] = json.loads(metadata[KEY])
        if MARK in metadata or "version" in about:
            about = parsed_json(name, metadata[KEY].decode(), "Selection")
            if about["indices"] != _sum(indices):
                raise ValueError("its indices do not have the checksum that they were written with")
        else:  # before there was a version
            warn_of_old(name, verified=False)
        numbers = ("num_samples", "num_classes", "seed")
        whole = {name: whole_number(name, about[name]) for name in numbers}
        if "repeat" in about:
            whole["repeat"] = whole_number("repeat", about["repeat"])
        return indices, whole | {"keep": str(about["keep"])}


def _sum(indices: Tensor) -> str:
    return f"{zlib.crc32(indices.numpy().tobytes()):08x}"


def _pyarrow(method: str) -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f"{method} needs pyarrow: pip install 'lightning-fairprune[parquet]'."
        ) from error
    return pa, pq
