"""Selecting from tables larger than memory, and in memory next to one sort.

    python benchmarks/select_scale.py --folder DISK                  # all; 1 GB of disk, some minutes
    python benchmarks/select_scale.py --folder DISK --parts table    # prefix, table, memory, sort, quotas

prefix: `select_table`, which is the command, on the first 1,000,000 rows of the table gives the rows of the
in-memory `select`.
table: `fairprune select --memory 2GiB` on 100,000,000 rows, each run a process of its own; time and peak
resident memory are the operating system's of that process, with Python, torch and all.
sort: `select` of 10,000,000 samples next to `torch.sort` of as many float32, in turn, one thread.
memory: peak resident memory of `select` of 100,000,000 samples, in a process of its own.
quotas: `quotas.drop` for 100,000,000 samples of 21,841 classes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lightning_fairprune import quotas, select
from lightning_fairprune.table import random_key, select_table

PARTS = ("prefix", "table", "sort", "memory", "quotas")
CLASSES, GROUPS, PREFIX = 1000, 2, 1_000_000
DENSITY = 0.3


def generate(path: Path, rows: int) -> None:
    """Writes (id, label, score, group) with labels of uneven sizes and scores in [0, 1)."""
    import duckdb

    with duckdb.connect(config={"memory_limit": "1500MiB"}) as connection:
        connection.execute("SET enable_progress_bar = false")
        unit = "(hash(range, {}) >> 11) / 9007199254740992.0"
        connection.execute(
            f"COPY (SELECT range AS id, CAST(FLOOR({CLASSES} * POWER({unit.format(1)}, 1.5)) AS INTEGER) "
            f"AS label, CAST({unit.format(2)} AS FLOAT) AS score, CAST(hash(range, 3) % {GROUPS} AS "
            f"TINYINT) AS \"group\" FROM range({rows})) TO '{path}' (FORMAT parquet)"
        )


def prefix_of(table: Path) -> Path:
    import duckdb

    path = table.with_name("prefix.parquet")
    duckdb.sql(f"COPY (SELECT * FROM '{table}' WHERE id < {PREFIX} ORDER BY id) TO '{path}'")
    return path


def recalls(folder: Path, by: str) -> Path:
    """Writes a recall for every class or pair of class and group."""
    path = folder / f"recalls-{by}.csv"
    rate = torch.rand(CLASSES * GROUPS, generator=torch.Generator().manual_seed(0)).double()
    if by == "label":
        lines = ["label,recall", *(f"{k},{float(rate[k])!r}" for k in range(CLASSES))]
    else:
        lines = ["label,group,recall"]
        lines += [f"{k // GROUPS},{k % GROUPS},{float(rate[k])!r}" for k in range(CLASSES * GROUPS)]
    path.write_text("\n".join(lines) + "\n")
    return path


def same_rows(table: Path) -> None:
    """Compares `select_table` on the prefix with the in-memory selection."""
    import pyarrow.parquet as pq

    path = prefix_of(table)
    columns = pq.read_table(path)
    label, score, group = (
        torch.from_numpy(columns[name].to_numpy().copy()) for name in ("label", "score", "group")
    )
    rate = torch.rand(CLASSES * GROUPS, generator=torch.Generator().manual_seed(0)).double()
    for by, keep in itertools.product(("label", "group"), ("hard", "easy", "random")):
        out = table.with_name("kept-prefix.parquet")
        target = label.long() if by == "label" else label.long() * GROUPS + group
        sizes = torch.bincount(target)
        recall = recalls(table.parent, by)
        select_table(path, DENSITY, recall=recall, keep=keep, by=by, out=out)  # type: ignore[arg-type]
        found = torch.from_numpy(pq.read_table(out)["id"].to_numpy().copy())
        quota = quotas.drop(sizes, rate[: len(sizes)], round(DENSITY * len(target)))
        order, way = (
            (random_key(torch.arange(len(target))), "easy") if keep == "random" else (score, keep)
        )
        expected = select(target, quota, score=order, keep=way).indices  # type: ignore[arg-type]
        verdict = "equal" if found.equal(expected) else "DIFFERENT"
        print(
            f"prefix  by {by:5}  {keep:6}  {len(found):>9,} of {len(target):,} rows  {verdict}",
            flush=True,
        )
        out.unlink()
        out.with_suffix(".json").unlink()


def command(table: Path, memory: str, *arguments: str) -> tuple[float, float]:
    """Returns seconds and peak MiB of one process of the command."""
    out = table.with_name("kept.parquet")
    line = [sys.executable, "-W", "ignore", "-m", "lightning_fairprune.cli", "select", str(table)]
    line += ["--density", str(DENSITY), "--memory", memory, "--out", str(out), *arguments]
    return of_process(line, out)


def of_process(line: list[str], out: Path | None = None) -> tuple[float, float]:
    begin = time.perf_counter()
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(line)} ended with status {process.returncode}.")
    if out is not None:
        out.unlink()
        out.with_suffix(".json").unlink()
    return seconds, used.ru_maxrss / 1024


def on_tables(table: Path, rows: int, memory: str) -> None:
    size = table.stat().st_size / 2**30
    print(
        f"table   {rows:,} rows, {CLASSES:,} classes, {size:.2f} GiB of Parquet, --memory {memory}"
    )
    given = {
        by: ["--by", by, "--recall", str(recalls(table.parent, by))] for by in ("label", "group")
    }
    runs = {
        f"drop, {keep}": [*given["label"], "--keep", keep]
        for keep in ("hard", "easy", "random", "stratified")
    }
    runs["drop by group, hard"] = [*given["group"], "--keep", "hard"]
    runs["drop by group, random"] = given["group"]
    runs["no quotas, hard"] = ["--quota", "none", "--keep", "hard"]
    # Half of the rows of a class tie where its quota ends, and all of those are sorted.
    runs["drop, hard, 2 scores"] = [*given["label"], "--keep", "hard", "--score", "group"]
    for name, arguments in runs.items():
        seconds, peak = command(table, memory, *arguments)
        print(f"table   {name:22} {seconds:6.1f} s  peak {peak / 1024:.2f} GiB", flush=True)


def samples(n: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(CLASSES, (n,), generator=generator)
    quota = (torch.bincount(target, minlength=CLASSES) * DENSITY).long()
    return target, torch.rand(n, generator=generator), quota


def next_to_sort(n: int, rounds: int) -> None:
    target, score, quota = samples(n)
    calls: dict[str, Callable[[], object]] = {
        "torch.sort": score.sort,
        "hard": lambda: select(target, quota, score=score, keep="hard"),
        "random": lambda: select(target, quota),
        "random_key": lambda: random_key(target),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begin)
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(taken, seconds["torch.sort"], strict=True))
        print(
            f"sort    {name:10} {min(taken):6.2f} s  {ratio:.2f} x torch.sort  (N = {n:,})",
            flush=True,
        )


def in_memory(n: int, keep: str) -> None:
    target, score, quota = samples(n)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    begin = time.perf_counter()
    if keep == "random":
        select(target, quota)
    else:
        select(target, quota, score=score, keep="hard")
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"memory  {keep:6} {seconds:5.1f} s  peak {peak:.2f} GiB, {before:.2f} GiB before (N = {n:,})",
        flush=True,
    )


def of_many_classes(n: int, num_classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(num_classes, generator=generator).double() ** 3 + 1e-3
    sizes = quotas.apportion(weight, [n] * num_classes, n)
    recall = torch.rand(num_classes, generator=generator).double()
    quotas.drop(sizes, recall, n // 3)
    taken = []
    for density in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        begin = time.perf_counter()
        quotas.drop(sizes, recall, round(density * n))
        taken.append(1000 * (time.perf_counter() - begin))
    print(
        f"quotas  {statistics.median(taken):.1f} ms median, {max(taken):.1f} ms most "
        f"(N = {n:,}, K = {num_classes:,})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, required=True, help="for tables; emptied of them at the end"
    )
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--in-memory", choices=("hard", "random"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.in_memory:
        in_memory(given.rows, given.in_memory)
        return
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}, 1 thread outside DuckDB"
    )
    folder = given.folder / "select_scale"
    folder.mkdir(parents=True)
    try:
        table = folder / "table.parquet"
        if {"prefix", "table"} & set(given.parts):
            begin = time.perf_counter()
            generate(table, given.rows)
            print(f"made in {time.perf_counter() - begin:.1f} s", flush=True)
        if "prefix" in given.parts:
            same_rows(table)
        if "table" in given.parts:
            on_tables(table, given.rows, given.memory)
    finally:
        shutil.rmtree(folder)
    if "sort" in given.parts:
        next_to_sort(given.rows // 10, given.rounds)
    if "memory" in given.parts:
        for keep in ("hard", "random"):
            line = [
                sys.executable,
                __file__,
                "--folder",
                str(given.folder),
                "--rows",
                str(given.rows),
            ]
            subprocess.run([*line, "--in-memory", keep], check=True)
    if "quotas" in given.parts:
        of_many_classes(given.rows, 21_841)


if __name__ == "__main__":
    main()
