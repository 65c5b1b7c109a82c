"""The files of a table as one view of the columns that the selection reads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


SMALL = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
READERS = {
    "read_parquet": (".parquet", ".pq"),
    "read_csv": (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zst"),
}


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns; None for one that is not read."""

    id: str = "id"
    label: str = "label"
    score: str | None = None
    group: str | None = None

    @property
    def cell(self) -> tuple[str, ...]:
        """The columns of the class."""
        return (self.label,) if self.group is None else (self.label, self.group)


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


@contextmanager
def plain_errors(memory: str) -> Iterator[None]:
    """Turn errors of DuckDB about files, values and memory into a ValueError."""
    import duckdb

    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise ValueError(
            f"`memory` of {memory} is not enough for this table ({_first(error)}); give it more."
        ) from error
    except duckdb.Error as error:
        raise ValueError(
            f"the tables cannot be read: {_first(error)}; copy or write them again."
        ) from error


def open_tables(
    connection: DuckDBPyConnection, tables: Sequence[str | os.PathLike[str]], columns: Columns
) -> tuple[tuple[str, ...], bool]:
    """Create the view ``samples`` (id, label, [part,] [score]) of files or globs.

    Returns:
        The files, and whether the ids are integers.
    """
    files: list[str] = []
    for name in (os.fspath(table) for table in tables):
        found = connection.execute("SELECT file FROM glob(?) ORDER BY file", [name]).fetchall()
        if not found and not os.path.isfile(name):
            raise FileNotFoundError(f"There is no file {name!r}.")
        files += [file for (file,) in found] or [name]
    # DuckDB would expand these characters again when it reads the files.
    odd = [file for file in files if any(character in file for character in "*?[")]
    if odd:
        raise ValueError(f"files must have names without *, ? and [, got {odd[0]!r}: rename it.")
    twice = [file for file in dict.fromkeys(files) if files.count(file) > 1]
    if twice:
        raise ValueError(f"every file must be named once, {twice[0]} is named more often.")
    readers = {_reader(file) for file in files}
    if len(readers) > 1:
        raise ValueError("all tables must be Parquet files or all CSV files, got both.")
    # Columns by name: their order may differ between files.
    source = f"{readers.pop()}([{', '.join(map(text, files))}], union_by_name = true)"
    described = connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()
    kinds = {str(row[0]): str(row[1]) for row in described}
    for role in ("id", "label", "group", "score"):
        name = getattr(columns, role)
        if name is not None and name not in kinds:
            raise ValueError(
                f"the tables have no column {name!r} for the {role}, only {', '.join(kinds)}: name it "
                f"with `{role}`."
            )
    if not connection.execute(f"SELECT 1 FROM {source} LIMIT 1").fetchall():
        raise ValueError("the tables must have rows, got none.")  # an empty CSV file has no types
    chosen = [f"{_discrete(getattr(columns, c), kinds, c)} AS {c}" for c in ("id", "label")]
    if columns.group is not None:
        chosen.append(f"{_discrete(columns.group, kinds, 'group')} AS part")
    if columns.score is not None:
        chosen.append(f"{_number(columns.score, kinds)} AS score")
    connection.execute(f"CREATE VIEW samples AS SELECT {', '.join(chosen)} FROM {source}")
    return tuple(files), kinds[columns.id] in SMALL


def _reader(file: str) -> str:
    for reader, ends in READERS.items():
        if file.lower().endswith(ends):
            return reader
    raise ValueError(f"tables must be .parquet or .csv files, got {file}.")


def _discrete(name: str, kinds: dict[str, str], role: str) -> str:
    kind, column = kinds[name], identifier(name)
    if kind in SMALL or (kind == "BOOLEAN" and role != "id"):
        return f"CAST({column} AS BIGINT)"
    if kind == "VARCHAR" or kind.startswith("ENUM"):
        return f"CAST({column} AS VARCHAR)"
    raise ValueError(f"column {name!r} must hold integers or strings for the {role}, got {kind}.")


def _number(name: str, kinds: dict[str, str]) -> str:
    kind, column = kinds[name], identifier(name)
    if kind in ("FLOAT", "DOUBLE"):
        return column
    if kind in SMALL:
        return f"CAST({column} AS BIGINT)"
    if kind.startswith("DECIMAL"):
        return f"CAST({column} AS DOUBLE)"
    raise ValueError(f"column {name!r} must hold numbers for the score, got {kind}.")


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
