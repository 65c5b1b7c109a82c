"""Prints every bad input with its sentence, as Markdown."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
import warnings
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import bad_inputs  # noqa: E402


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = bad_inputs.rows()
    print(f"# {len(rows)} bad inputs and what the library says\n")
    print("| # | input | error | sentence |\n|--:|---|---|---|")
    for number, row in enumerate(rows, 1):
        with tempfile.TemporaryDirectory() as folder:
            at = Path(folder)
            row.given(at)
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    row.do(at)
                kind, said = "nothing", ""
            except (Exception, SystemExit) as error:
                kind, said = type(error).__name__, str(error)
            said = " ".join(said.replace(str(at), "...").split()).replace("|", r"\|")
            said = said if len(said) <= 400 else said[:400] + " ..."
            print(f"| {number} | {row.name} | {kind} | {said} |", flush=True)


if __name__ == "__main__":
    main()
