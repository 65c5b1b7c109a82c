"""What an import costs on top of Lightning's, in fresh interpreters with compiled bytecode."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

# In one process: Lightning first, then what comes on top of it, in processor seconds of that process.
_CODE = """
import json, sys, time
clock = time.process_time
begin = clock()
import lightning.pytorch
theirs = clock()
before = set(sys.modules)
import lightning_fairprune as lfp
package = clock()
for name in lfp.__all__:
    getattr(lfp, name)
every = clock()
print(json.dumps([theirs - begin, package - theirs, every - theirs]))
"""
_HELP = "import sys; from lightning_fairprune.cli import main; sys.exit(main(['--help']))"


def imports(rounds: int) -> dict[str, list[float]]:
    """Returns processor seconds by what was imported, one value a round.

    "lightning" is `import lightning.pytorch`; "package" what `import lightning_fairprune` adds to it; "names" what
    it adds with every public name used once; "help" a whole process of `fairprune --help`, "empty" one that
    does nothing.
    """
    import json

    seconds: dict[str, list[float]] = {
        name: [] for name in ("lightning", "package", "names", "help", "empty")
    }
    with tempfile.TemporaryDirectory() as cache:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = cache
        for turn in range(rounds + 1):
            taken = json.loads(_run(_CODE, environment)[0])
            whole = [_run(code, environment)[1] for code in (_HELP, "pass")]
            if turn:  # the first one compiles
                for name, value in zip(seconds, [*taken, *whole], strict=True):
                    seconds[name].append(value)
    return seconds


def _run(code: str, environment: dict[str, str]) -> tuple[str, float]:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"python -c {code!r} ended with status {process.returncode}.")
    return printed, used.ru_utime + used.ru_stime
