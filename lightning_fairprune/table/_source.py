"""The files of a table as one view of the columns that the selection reads."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


ROLES = ("id", "label", "group", "score")
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
    for name in (_local(os.fspath(table)) for table in tables):
        found = connection.execute("SELECT file FROM glob(?) ORDER BY file", [name]).fetchall()
        if not found and not os.path.isfile(name):
            if os.path.isdir(name):
                raise FileNotFoundError(
                    f"There is no file {name!r}: it is a folder; give the files in it, such as "
                    f"{os.path.join(name, '*.parquet')!r}."
                )
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
    roles = {role: name for role in ROLES if (name := getattr(columns, role)) is not None}
    for file in files:
        _refuse_twins(connection, file, roles)
    for role in ROLES:
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


def _local(name: str) -> str:
    """Return a path on this machine: DuckDB would load an extension for others, and read from the network."""
    name = os.path.expanduser(name)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", name) and not os.path.exists(name):
        raise ValueError(
            f"tables must be files on this machine, got {name!r}: download it first, and give its path."
        )
    return name


def _refuse_twins(connection: DuckDBPyConnection, file: str, roles: Mapping[str, str]) -> None:
    """Raise a ValueError if a column to read has a twin; names that differ only in case are one to DuckDB."""
    if _reader(file) == "read_parquet":
        root = connection.execute(
            f"SELECT name, num_children FROM parquet_schema({text(file)})"
        ).fetchall()
        names = _top_level(root)
    else:
        first = f"SELECT * FROM read_csv({text(file)}, header = false, all_varchar = true) LIMIT 1"
        names = [str(name) for row in connection.execute(first).fetchall() for name in row]
    # Folders such as label=3 are columns, too.
    names += [part.partition("=")[0] for part in Path(file).parts[:-1] if "=" in part]
    for role, name in roles.items():
        twins = [found for found in names if found.strip().casefold() == name.casefold()]
        if len(twins) > 1:
            raise ValueError(
                f"{file} must have one column {name!r} for the {role}, it has "
                f"{' and '.join(map(repr, twins))}: rename the others."
            )


def _top_level(rows: Sequence[tuple[str, int | None]]) -> list[str]:
    """Return the names of the columns in a schema that lists each node before its children."""
    names: list[str] = []
    left: list[int] = []  # children to come of each open node
    for name, children in rows:
        if len(left) == 1:
            names.append(name)
        if left:
            left[-1] -= 1
        left.append(children or 0)
        while left and not left[-1]:
            left.pop()
    return names


def _reader(file: str) -> str:
    for reader, ends in READERS.items():
        if file.lower().endswith(ends):
            return reader
    raise ValueError(f"tables must be .parquet or .csv files, got {file}.")


def _discrete(name: str, kinds: dict[str, str], role: str) -> str:
    kind, column = kinds[name], identifier(name)
    if kind == "BOOLEAN" and role != "id":
        # The reader of CSV would take a CAST for the type of the column.
        return f"CASE {column} WHEN true THEN 1::BIGINT WHEN false THEN 0::BIGINT END"
    if kind in SMALL:
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
    if lines and "CSV Error" in lines[0]:  # the next ones are the line and what is wrong with it
        lines[0] = ", ".join(line.rstrip(".") for line in lines[:3])[:300]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
