"""Reads and writes experiments as YAML, and finds the settings that a result depends on."""

from __future__ import annotations

import copy
import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

import lightning_fairprune.callbacks  # noqa: F401  # imported classes go by their short names
from lightning_fairprune.experiments._cells import Cell
from lightning_fairprune.experiments._parts import Baseline, Method, OneFit, WeightMethod
from lightning_fairprune.experiments._records import Experiment

CONFIGS = Path(__file__).parent / "configs"
# jsonargparse 4.49 renamed this option. Null must be dumped, since the default may be another value.
_RENAMED = tuple(map(int, version("jsonargparse").split(".")[:2])) >= (4, 49)
_WHOLE: dict[str, Any] = {"skip_unset" if _RENAMED else "skip_none": False}
ASKED = "give the path of a YAML file, or one of those that come with this package: " + ", ".join(
    sorted(file.name for file in CONFIGS.glob("*.yaml"))
)
_PARTS = {"methods": Method, "one_fit": OneFit, "baselines": Baseline, "weights": WeightMethod}
OWN = ("config", "out", "jobs", "threads", "dry_run")
# The place of the data and their loading differ between machines and are no settings.
_PLACES = ("root", "cache", "num_workers", "download")


def parser() -> ArgumentParser:
    """Returns the parser of the arguments of `Experiment`."""
    made = ArgumentParser(
        prog="fairprune experiment",
        description="Train query models, choose subsets, train final models on them from scratch and "
        "compare their classes: a grid of methods, densities and seeds. What is finished is never "
        "done again, so run the same command to continue.",
    )
    made.add_argument("--config", action="config", help="YAML file; also the first argument")
    made.add_class_arguments(Experiment)
    return made


def plain(parsed: Any) -> dict[str, Any]:
    """Returns an experiment as nested dictionaries, lists and primitives, with all defaults."""
    without = parsed.clone()
    for name in OWN:
        without.pop(name, None)
    text = parser().dump(without, format="json", **_WHOLE)
    found: dict[str, Any] = json.loads(text)
    # Older versions of jsonargparse leave defaults out of records that are values of a dictionary.
    for name, record in _PARTS.items():
        defaults = {field.name: field.default for field in fields(record)}
        plainly = {
            k: v for k, v in defaults.items() if v is None or isinstance(v, str | float | int)
        }
        found[name] = {key: plainly | value for key, value in found[name].items()}
    return {key: value for key, value in found.items() if key not in OWN}


def build(settings: Mapping[str, Any]) -> Experiment:
    """Returns the experiment of these nested dictionaries, with new objects.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> from lightning_fairprune.experiments import read_config
        >>> build(read_config("digits")).query.early_epoch
        3
    """
    made = parser()
    # A copy, because the parser writes objects into its argument.
    parsed = made.parse_object(copy.deepcopy(dict(settings)))
    instantiate = getattr(made, "instantiate", None) or made.instantiate_classes
    built = instantiate(parsed)
    return Experiment(**{field.name: built[field.name] for field in fields(Experiment)})


def find(name: str) -> Path:
    """Returns the file of a config: the path `name`, else the shipped one of that name.

    Raises:
        FileNotFoundError: If there is neither.

    Example:
        >>> find("digits.yaml") == find("digits") == CONFIGS / "digits.yaml"
        True
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = CONFIGS / path.name
    for candidate in (shipped, shipped.with_name(f"{shipped.name}.yaml")):
        if path.parent == Path() and candidate.is_file():
            return candidate
    raise FileNotFoundError(f"there is no config {name!r}: {ASKED}.")


def settings_of(cell: Cell, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that the result of a cell depends on, flat: ``{"query.epochs": 8, ...}``.

    Densities, seeds and other methods are not among them, so these can be added later.
    """
    wanted: dict[str, Any] = {
        "data": settings["data"],
        "model": settings["model"],
        "group_by": settings["group_by"],
        "trainer": {"precision": settings["trainer"]["precision"]},
    }
    query = settings["query"]
    training = {name: query[name] for name in ("epochs", "early")}
    if cell.kind in ("query", "score"):
        wanted["query"] = training
        if cell.kind == "score":
            wanted["score"] = _score(cell, settings)
    elif cell.kind == "final":
        wanted["query"] = dict(query)
        wanted["methods"] = {cell.name: settings["methods"][cell.name]}
    else:
        part = "baselines" if cell.kind == "baseline" else cell.kind
        wanted[part] = {cell.name: settings[part][cell.name]}
    if cell.kind == "weights":
        dense = next(iter(settings["baselines"]))
        wanted["baselines"] = {dense: settings["baselines"][dense]}
        wanted["finetune"] = settings["finetune"]
    if cell.in_table:
        wanted["final"] = settings["final"]
    return {key: value for key, value in _flat(wanted) if not _is_place(key)}


def _score(cell: Cell, settings: Mapping[str, Any]) -> Any:
    for method in settings["methods"].values():
        score = method["score"]
        path = score["class_path"] if isinstance(score, Mapping) else str(score)
        if method["score_on"] == "pass" and path.rsplit(".", 1)[-1] == cell.name:
            return score
    return None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns in words the settings in which an experiment differs from an earlier result.

    An argument that only one of them has counts as a difference unless it has its default, since a class
    may get a new argument while an experiment runs.

    Example:
        >>> differences(
        ...     {"final.epochs": 6, "group_by": None}, {"final.epochs": 8, "group_by": None}
        ... )
        ['final.epochs was 6 and is 8']
    """
    found = []
    for name in dict.fromkeys([*before, *now]):
        if name in before and name in now:
            differs = before[name] != now[name]
        else:
            differs = not _is_default(name, now if name in now else before)
        if differs:
            sides = (json.dumps(s[name]) if name in s else "not there" for s in (before, now))
            found.append("{} was {} and is {}".format(name, *sides))
    return found


def _is_default(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether a setting is an argument of a class, or of a method, with its default value."""
    part, _, rest = name.partition(".")
    if part == "methods" and ".init_args." not in rest:
        default = {field.name: field.default for field in fields(Method)}
        argument = rest.rpartition(".")[2]
        return argument in default and settings[name] == default[argument]
    owner, _, argument = name.rpartition(".init_args.")
    path = settings.get(f"{owner}.class_path")
    if path is None or "." in argument:
        return False
    owner_class = _known(path)
    parameters = {} if owner_class is None else inspect.signature(owner_class).parameters
    if argument not in parameters:
        return False
    default, value = parameters[argument].default, settings[name]
    if inspect.isroutine(default):
        return isinstance(value, str) and _known(value) is default
    return bool(default == value)


def _known(path: str) -> Any:
    """Returns an object that is already imported: a file of results must not cause an import."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping) or not value:
        return [(prefix, value)]
    names = {key: f"{prefix}.{key}" if prefix else key for key in value}
    return [found for key, name in names.items() for found in _flat(value[key], name)]


def _is_place(name: str) -> bool:
    return name.startswith("data.init_args.") and name.rsplit(".", 1)[-1] in _PLACES
