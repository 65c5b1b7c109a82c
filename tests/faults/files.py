"""Reads mutated files of every format, and prints how many were refused or read as they were.

    python tests/faults/files.py [--count 20000] [--seed 0] [--only WORD]

Each format is read in a process of its own, with bounded memory. Ends with status 1 if a reader did anything
else, with the file kept.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (1, 2)]

MEMORY = 2 * 2**30  # bytes beyond what is in use at the start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return _read_all(given.child, given.seed, given.count)
    from faults.mutations import FILES

    print("| file | mutations | refused | same | other, right checksum | told | wrong | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    wrong = 0
    for name in FILES:
        if given.only not in name:
            continue
        start = time.monotonic()
        options = ["--seed", str(given.seed), "--count", str(given.count)]
        done = subprocess.run(
            [sys.executable, __file__, "--child", name, *options], capture_output=True, text=True
        )
        if done.returncode:
            wrong += 1
            print(f"{name}: the process ended with {done.returncode}: {done.stderr[-2000:]}")
            continue
        counts, examples = json.loads(done.stdout.splitlines()[-1])
        wrong += len(examples)
        columns = [counts.get(key, 0) for key in ("refused", "same", "other", "told", "WRONG")]
        seconds = round(time.monotonic() - start)
        print(
            f"| {name} | {given.count} | {' | '.join(map(str, columns))} | {seconds} |", flush=True
        )
        for text in examples[:20]:
            print(f"    {text}")
    return int(wrong > 0)


def _read_all(name: str, seed: int, count: int) -> int:
    import torch
    from faults.mutations import FILES, content_of, judged, mutations

    torch.manual_seed(0)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    write, read = FILES[name]
    folder = Path(tempfile.mkdtemp(prefix="mutations-"))
    path = folder / name
    original = folder / "original" / name
    original.parent.mkdir()
    write(path)

    whole = content_of(read(path))
    if (other := path.with_suffix(".safetensors")) != path:
        other.unlink(missing_ok=True)  # else it would be read in place of JSON
    original.write_bytes(path.read_bytes())
    counts: Counter[str] = Counter()
    examples: list[str] = []
    for i, mutation in enumerate(mutations(name, original, seed, count)):
        path.write_bytes(mutation.content)
        verdict = judged(read, path, mutation, whole)
        counts[verdict.split()[0]] += 1
        if verdict.startswith("WRONG"):
            kept = folder / f"{i}-{name}"
            kept.write_bytes(mutation.content)
            examples.append(f"{kept} {mutation.how}: {verdict[:300]}")
    print(json.dumps([counts, examples]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
