"""The similarities of a run in the folder of its logger, where the report finds them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lightning_fairprune._files import RUN_FOLDER, read_json, understanding, write_json

_KIND = "representation"
FILE = "similarity.json"


class Similarity(NamedTuple):
    """What `save` wrote: the value of each layer, in the order of the network, or NaN, and what the values are, in words.

    Example:
        >>> Similarity({"conv": 0.98, "fc": 0.61}, "linear CKA").layers["fc"]
        0.61
    """

    layers: dict[str, float]
    measure: str


def save(
    path: str | os.PathLike[str], layers: Mapping[str, float], *, measure: str = "linear CKA"
) -> None:
    """Writes how alike the layers of a run's network and another are, for `fairprune report`, over an earlier file.

    Args:
        path: The folder of the run, in which it is ``fairprune/similarity.json``, or a file that ends with
            ``.json``; missing folders are made.
        layers: Value of each layer, as from `compare_layers`: in [-1, 1], or NaN.
        measure: What the values are, for headings.

    Raises:
        ValueError: If there is no layer, or a value is out of range.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(folder, {"conv": 0.98, "fc": 0.61})
        ...     load(folder)
        Similarity(layers={'conv': 0.98, 'fc': 0.61}, measure='linear CKA')
    """
    file = _file(path)
    values = {str(name): float(value) for name, value in layers.items()}
    _check(values)
    file.parent.mkdir(parents=True, exist_ok=True)
    numbers = {name: None if math.isnan(v) else v for name, v in values.items()}
    write_json(file, _KIND, {"measure": measure, "layers": numbers})


def load(path: str | os.PathLike[str]) -> Similarity:
    """Reads what `save` wrote to `path`; the folder that the file is in will do, too.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, of another kind or of another version.

    Example:
        >>> load("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: There is no file 'nowhere/fairprune/similarity.json'.
    """
    file = Path(path) / FILE
    file = file if file.is_file() else _file(path)
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {str(file)!r}.")
    content = read_json(file, _KIND)
    with understanding(file):
        values = {k: math.nan if v is None else float(v) for k, v in content["layers"].items()}
        _check(values)
        return Similarity(values, str(content["measure"]))


def _file(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix == ".json":
        return path
    return (path if path.name == RUN_FOLDER else path / RUN_FOLDER) / FILE


def _check(layers: Mapping[str, float]) -> None:
    if not layers:
        raise ValueError("`layers` must name at least one layer, got none.")
    for name, value in layers.items():
        if not (math.isnan(value) or -1 <= value <= 1):
            raise ValueError(
                f"`layers` must have values in [-1, 1] or NaN, got {value} of {name!r}."
            )
