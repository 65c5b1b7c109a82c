"""From files and a density to the rows kept: count, set quotas, compute thresholds, write."""

from __future__ import annotations

import operator
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from lightning_fairprune import quotas
from lightning_fairprune._files import write_whole
from lightning_fairprune.records.recall_history import printable, shortened
from lightning_fairprune.selection import Keep
from lightning_fairprune.selection.decision import Decision, emptied, emptied_in_words
from lightning_fairprune.selection.strata import STRATA
from lightning_fairprune.table import _sql
from lightning_fairprune.table._count import Found, classes_of, refuse_doubles, shares
from lightning_fairprune.table._recall import listed, named, recall_of
from lightning_fairprune.table._record import TableSelection
from lightning_fairprune.table._source import Columns, open_tables, plain_errors, text

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


RULES = ("drop", "drop_reference", "proportional", "balanced", "none")
RECALLED = ("drop", "drop_reference")
CELLS = 2**22  # of the histogram: 4 million, about 200 MB
# A name is never a reason to download code, nor to load what was downloaded before.
OFFLINE = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
}
UNITS = {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
UNITS |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}

Path_ = str | os.PathLike[str]


def select_table(
    tables: Path_ | Sequence[Path_],
    density: float | None = None,
    *,
    quota: str | Mapping[object, int] = "drop",
    recall: Path_ | Mapping[object, float] | None = None,
    keep: Keep = "random",
    seed: int = 0,
    by: str = "label",
    id: str = "id",
    label: str = "label",
    score: str = "score",
    group: str = "group",
    memory: str = "2GiB",
    out: Path_ | None = None,
    shrinkage: float | Literal["auto"] = "auto",
    floor: int = 0,
    on_step: Callable[[str], object] | None = None,
) -> TableSelection:
    r"""Choose the rows of a table to keep, and write their ids to a Parquet file.

    The rows are those that `lightning_fairprune.select` keeps of the same samples in the order of their
    ids: for "hard" and "easy" with the same arguments, for "random" with ``score=random_key(id, seed),
    keep="easy"``, as the keys of its own "random" cannot be computed in SQL. "stratified" keeps equally
    many rows of each stratum, those of lowest `random_key`.

    Args:
        tables: Parquet or CSV files, or globs; together they are one table.
        density: fraction of the rows to keep, in (0, 1]; rounded to whole rows, at least one.
        quota: "drop", "drop_reference", "proportional" or "balanced", the rules of
            `lightning_fairprune.quotas`; "none": the order decides across classes; or the rows to keep
            by class, with ``density=None``.
        recall: for "drop" and "drop_reference", the recall of every class: a CSV file with the
            columns of the class and ``recall``, maybe ``support``; the folder of a run with RecallMonitor, for
            its last validation; or numbers by class. NaN or empty marks a class never seen.
        keep: which rows of a class, as in `select`: "random"; "hard", "easy" or "stratified" by
            score, lower id first among equal scores. "random" and "stratified" need integer ids.
        seed: seed of the random order.
        by: "label", or "group" for classes that are pairs of label and group.
        id: column of unique ids, integers or strings.
        label: column of the class, integers or strings, in their order; a row with -1 is not selected,
            but counts for the density.
        score: column of the score, higher = harder; not read with ``keep="random"``.
        group: column of the group, read with ``by="group"``.
        memory: of the process, such as ``"2GiB"``, half of it for DuckDB. What does not fit is written
            to a folder beside ``out``.
        out: Parquet file for the kept ids, in order; a summary is written beside it, as .json. None
            only sets the quotas.
        shrinkage: as in `DataPruning`: how far recalls are pulled to the mean, so that noise does not set the
            quotas; ``"auto"`` as far as noise explains their differences, a number by so many pseudo-samples.
            For recalls of a run, or with the column ``support``, the number of validation samples; others are
            taken as they are.
        floor: as in `DataPruning`: rows that every class keeps at least, or all of a smaller class.
        on_step: called with a few words when a step starts.

    Returns:
        The `TableSelection`.

    Raises:
        ImportError: DuckDB or pyarrow is not installed.
        FileNotFoundError: A table or the recalls do not exist.
        ValueError: An argument, column, score, label or id that cannot be used.
    """
    if by not in ("label", "group"):
        raise ValueError(f"`by` must be 'label' or 'group', got {by!r}.")
    if keep not in get_args(Keep):
        raise ValueError(f"`keep` must be one of {', '.join(get_args(Keep))}, got {keep!r}.")
    _check_quota(density, quota, recall)
    _check_numbers(quota, shrinkage, floor)
    order = _sql.Order(keep, operator.index(seed))
    columns = Columns(
        id, label, None if keep == "random" else score, group if by == "group" else None
    )
    out = None if out is None else _free(Path(out))
    names = [tables] if isinstance(tables, str | os.PathLike) else list(tables)
    step = on_step or (lambda words: None)
    spill = tempfile.TemporaryDirectory(prefix=".fairprune-", dir=out and out.parent)
    with spill as folder, _connect(memory, folder) as connection, plain_errors(memory):
        files, numbered = open_tables(connection, names, columns)
        if order.drawn and not numbered:
            raise ValueError(
                f"keep={keep!r} draws a key for each integer id, but column {id!r} holds strings: "
                "number the rows, or choose keep='hard' or 'easy'."
            )
        step("Counting classes")
        found = classes_of(connection, columns, finite=keep == "stratified")
        result = _with_quotas(found, density, quota, recall, columns, shrinkage, floor)
        wanted: Tensor | int = result.budget if result.quota is None else result.quota
        sql = _sql.definition(found.classes, wanted, order, columns, found.excluded)
        result = replace(result, keep=keep, seed=order.seed, tables=files, sql=sql)
        if out is None:
            return result
        step("Looking for ids that occur twice")
        refuse_doubles(connection, numbered, id)
        return _write(connection, result, found, order, out, step)


def _with_quotas(
    found: Found,
    density: float | None,
    quota: str | Mapping[object, int],
    recall: Path_ | Mapping[object, float] | None,
    columns: Columns,
    shrinkage: float | Literal["auto"],
    floor: int,
) -> TableSelection:
    rate = None if recall is None else recall_of(recall, found.classes, columns.cell, shrinkage)
    if isinstance(quota, Mapping):
        given = {key if isinstance(key, tuple) else (key,): n for key, n in quota.items()}
        per_class = listed(given, found.classes, "a quota", "`quota`").long()
        wrong = (per_class < 0) | (per_class > found.sizes)
        if bool(wrong.any()):
            k = int(wrong.nonzero()[0])
            raise ValueError(
                f"`quota` asks for {int(per_class[k])} rows of class {named(found.classes[k])}, which has "
                f"{int(found.sizes[k])}."
            )
        budget, rule, chosen = int(per_class.sum()), "given", per_class
    else:
        assert density is not None
        budget, rule = max(1, round(density * found.num_samples)), quota
        if budget > (total := int(found.sizes.sum())):
            raise ValueError(
                f"`density` {density:g} of {found.num_samples} rows is {budget}, but only {total} "
                "have a class (label -1 leaves a row out)."
            )
        if rule == "none":
            chosen = None
        else:
            decision = Decision(density, getattr(quotas, rule), floor=floor)
            chosen = decision.quotas(found.sizes, rate, budget)
    result = TableSelection(
        found.classes, found.sizes, chosen, found.num_samples, budget, rule, rate
    )
    _warn_of_empty(result)
    return result


def _warn_of_empty(result: TableSelection) -> None:
    """Warns of classes that keep no row."""
    if result.quota is None or not (empty := emptied(result.quota, result.sizes)):
        return
    names = [printable(shortened(name)) for name, *_ in result.rows()]
    remedy = "Use quotas" if result.rule == "none" else "Set `floor`"
    warnings.warn(emptied_in_words(empty, names, len(names), "classes", remedy), stacklevel=4)


def _write(
    connection: DuckDBPyConnection,
    result: TableSelection,
    found: Found,
    order: _sql.Order,
    out: Path,
    step: Callable[[str], object],
) -> TableSelection:
    homes = 1 if result.quota is None else len(found.classes)
    quota = torch.tensor([result.budget]) if result.quota is None else result.quota
    found.register(connection, across=result.quota is None)
    piles = homes * (STRATA if order.keep == "stratified" else 1)
    rows = _sql.keyed(order, found.keys, max(4, min(4096, CELLS // piles)))
    step("Counting scores" if order.keep != "random" else "Counting keys")
    connection.execute(f"CREATE TABLE histogram AS {_sql.histogram(rows)}")
    shares(connection, quota, STRATA if order.keep == "stratified" else 1)
    connection.execute(f"CREATE TABLE edges AS {_sql.edges()}")
    done: list[TableSelection] = []

    def fill(temporary: Path) -> None:
        kept = _sql.selection(rows, order, "id")
        step("Writing the ids of the rows kept")
        name = text(str(temporary))
        connection.execute(f"COPY ({kept} ORDER BY id) TO {name} (FORMAT parquet)")
        written = connection.execute(f"SELECT COUNT(*) FROM read_parquet({name})").fetchall()[0][0]
        per_class = result.quota
        if per_class is None:
            step("Counting the rows kept")
            counted = connection.execute(
                f"SELECT class, COUNT(*) FROM ({_sql.selection(rows, order, 'id, class')}) GROUP BY class"
            ).fetchall()
            per_class = torch.zeros_like(found.sizes)
            for k, count in counted:
                per_class[k] = count
        if written != result.budget or int(per_class.sum()) != written:
            raise ValueError(
                f"the tables changed while they were read: {written} rows are left of "
                f"{result.budget}; run it again."
            )
        done.append(replace(result, quota=per_class, path=out))
        if result.quota is None:
            _warn_of_empty(done[0])
        # The summary first: whoever finds the ids finds both.
        done[0].save_summary(_summary(out))

    write_whole(out, fill)
    return done[0]


def _check_quota(
    density: float | None,
    quota: str | Mapping[object, int],
    recall: Path_ | Mapping[object, float] | None,
) -> None:
    if isinstance(quota, str) and quota not in RULES:
        raise ValueError(f"`quota` must be one of {', '.join(RULES)}, got {quota!r}.")
    if isinstance(quota, str) and (density is None or not 0 < density <= 1):
        raise ValueError(f"`density` must be above 0 and at most 1, got {density}.")
    if not isinstance(quota, str) and density is not None:
        raise ValueError("`density` has no effect where `quota` gives the rows per class.")
    if quota in RECALLED and recall is None:
        raise ValueError(
            f"quota {quota!r} follows the recall of each class: pass `recall`, a CSV file or the "
            "folder of a run, or choose 'proportional' or 'balanced'."
        )
    if quota not in RECALLED and recall is not None:
        raise ValueError(
            f"`recall` has no effect on these quotas; choose {' or '.join(map(repr, RECALLED))}."
        )


def _check_numbers(quota: str | Mapping[object, int], shrinkage: object, floor: object) -> None:
    given = isinstance(shrinkage, Real) and float(shrinkage) >= 0  # NaN is not
    if not (given or shrinkage == "auto"):
        raise ValueError(f"`shrinkage` must be 0 or more samples, or 'auto', got {shrinkage!r}.")
    if isinstance(floor, bool) or not isinstance(floor, Integral) or int(floor) < 0:
        raise ValueError(f"`floor` must be 0 or more samples, a whole number, got {floor!r}.")
    if floor and (quota == "none" or not isinstance(quota, str)):
        raise ValueError(
            "`floor` has no effect where the order decides across classes, or where `quota` gives the rows "
            "per class: leave it out, or choose a rule for the quotas."
        )


def _free(out: Path) -> Path:
    """Return the file to write; neither it nor its summary may exist."""
    if out.suffix.lower() != ".parquet":
        raise ValueError(f"`out` must end in .parquet, got {out}.")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(out.parent)!r} for `out`.")
    for path in (out, _summary(out)):
        if path.exists():
            raise ValueError(f"{path} already exists: remove it or choose another `out`.")
    return out


def _summary(out: Path) -> Path:
    return out.with_suffix(".json")


def _connect(memory: str, folder: str) -> DuckDBPyConnection:
    try:
        import duckdb
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "tables are read by duckdb and pyarrow: pip install 'lightning-fairprune[scale]'."
        ) from error
    size = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]i?b)", memory.strip().lower())
    limit = float(size[1]) * UNITS[size[2]] * 0.5 / 2**20 if size else 0
    if limit < 128:
        raise ValueError(f"`memory` must be at least 256MiB, such as 2GiB, got {memory!r}.")
    config = {"memory_limit": f"{int(limit)}MiB", "temp_directory": folder} | OFFLINE
    connection = duckdb.connect(config={**config, "preserve_insertion_order": False})
    connection.execute("SET enable_progress_bar = false")
    return connection
