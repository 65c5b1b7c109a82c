"""Everything that users may get wrong: one sentence, in time, and no file is lost."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import bad_inputs
import pytest
from bad_inputs import Bad

import lightning_fairprune

ROWS = bad_inputs.rows()
OURS = str(Path(lightning_fairprune.__file__).parent)
# Words of torch, Python and other libraries that no user should have to understand alone.
RAW = (
    "index out of range",
    "out of bounds",
    "size mismatch",
    "not supported between",
    "has no attribute",
    "object is not",
    "Traceback",
    "internal assert",
)
FOREIGN = ("YAML", "experiment", "data set that cannot be imported")


def files(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_there_are_a_hundred_and_each_has_a_name() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names) >= 100


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_bad_input(row: Bad, tmp_path: Path) -> None:
    row.given(tmp_path)
    before = files(tmp_path)
    bad_inputs.forget()
    with pytest.raises(row.error) as caught:
        row.do(tmp_path)
    said = " ".join(str(caught.value).split())
    for part in (row.must, row.found, row.then):
        assert re.search(part, said), f"{part!r} is not in: {said}"
    assert row.must
    assert row.found
    assert bad_inputs.steps <= row.steps, "training went on before anything was said"
    # Also: no file that a pickle would have made.
    assert files(tmp_path) == before
    if row.error is not SystemExit:
        last = traceback.extract_tb(caught.value.__traceback__)[-1]
        assert last.filename.startswith(OURS), f"raised in {last.filename}"
    if not row.name.startswith(FOREIGN) and FOREIGN[-1] not in row.name:
        assert not [words for words in RAW if words in said], said


def test_a_pickle_that_is_loaded_would_have_been_noticed(tmp_path: Path) -> None:
    import pickle

    from bad_inputs.checkpoints import Payload

    pickle.loads(pickle.dumps(Payload(tmp_path)))
    assert (tmp_path / "owned").is_file()
