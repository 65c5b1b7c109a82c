"""The settings of runs, and their labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Any

import yaml  # type: ignore[import-untyped]

from lightning_fairprune.report._read import TEXTS, Run

# Sources of entries: DataPruning and WeightPruning.
PRUNING, WEIGHTS = "pruning", "weights"
# The first entries of a label, and those that every label has.
FIRST = ("quota", "density", "score", "keep", "criterion", "sparsity", "schedule")
ALWAYS = {PRUNING: ("quota", "density"), WEIGHTS: ("criterion", "sparsity")}
# Folders of a run, which do not belong to its setting.
_PLACES = {"default_root_dir", "save_dir", "dirpath", "log_dir", "ckpt_path"}
_MOST_VALUES = 100_000
_MOST_TEXT = 20_000  # characters of a file that are shown
_SEED = re.compile(r"(^|_)seed($|_)", re.IGNORECASE)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_MODULE = re.compile(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])")


def configuration(run: Run) -> dict[str, str]:
    """Returns the configuration of a run as text, without seeds and folders, by dotted names.

    Names start with their source: ``pruning`` (of data), ``weights``, ``hparams`` or ``config``.
    """
    pruned = any(evaluation.pruned for evaluation in run.history.evaluations)
    found = {PRUNING: "weights" if pruned else "none"}
    if run.record is not None:
        found = {PRUNING: "data", **_flat(run.record.settings, PRUNING)}
    if run.sparsity is not None:
        found[PRUNING] = "weights" if run.record is None else "data and weights"
        found |= _flat(run.sparsity.settings, WEIGHTS)
    for name, text in run.texts.items():
        found |= _flat(_parsed(text), name.removesuffix(".yaml"))
    return found


def texts_of(run: Run) -> dict[str, str]:
    """Returns the configuration of a run as written, by source; long texts are cut off."""
    texts = {}
    for name, record in (("pruning", run.record), ("weight pruning", run.sparsity)):
        if record is not None:
            texts[name] = "\n".join(f"{key}: {value}" for key, value in record.settings.items())
    for name, text in (texts | run.texts).items():
        cut = f"{text[:_MOST_TEXT]}\n... cut off here" if len(text) > _MOST_TEXT else text
        texts[name] = cut.strip()
    return texts


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Returns the runs of each setting by label: runs of one name, or of one configuration."""
    settings: dict[object, list[Run]] = {}
    for run in runs:
        key = run.name if run.name is not None else frozenset(configuration(run).items())
        settings.setdefault(key, []).append(run)
    named = [members[0].name for members in settings.values()]
    places = Counter(_folder(members) for members in settings.values())
    for i, members in enumerate(settings.values()):
        # If there are several folders, one that contains a single setting is its name.
        folder = _folder(members)
        alone = len(places) > 1 and places[folder] == 1
        if named[i] is None and alone and folder not in named:
            named[i] = folder
    pairs = list(zip(named, settings.values(), strict=True))
    taken = {name for name in named if name is not None}
    made = iter(labels([members[0] for name, members in pairs if name is None], taken))
    return {next(made) if name is None else name: members for name, members in pairs}


def _folder(runs: Sequence[Run]) -> str | None:
    """Returns the name of the one folder that the user gave for these runs, or None."""
    folders = {run.found_in for run in runs}
    folder = folders.pop()
    return folder.name or None if folder is not None and not folders else None


def labels(runs: Sequence[Run], taken: Set[str] = frozenset()) -> list[str]:
    """Returns labels for runs of different settings, by the entries that distinguish them, none of `taken`."""
    known = [configuration(run) for run in runs]
    found = _pruning_labels(known)
    for source in [text.removesuffix(".yaml") for text in TEXTS]:
        for label in dict.fromkeys(found):
            alike = [i for i, other in enumerate(found) if other == label]
            apart = _tell_apart([known[i] for i in alike], source)
            for i, more in zip(alike, apart, strict=True):
                found[i] = ", ".join(part for part in (label, more) if part)
    found = _with_place(found, [run.path.name for run in runs], taken)
    return _with_place(found, [run.path.as_posix() for run in runs], taken)


def differences(configurations: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns the names of the entries that differ, pruning first."""
    sources = (PRUNING, WEIGHTS, *(text.removesuffix(".yaml") for text in TEXTS))
    return [key for source in sources for key in _differing(configurations, source)]


def shown(value: str) -> str:
    """Returns a value without the modules of functions."""
    return _MODULE.sub("", value)


def _pruning_labels(configurations: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns the pruning in words, by the entries that distinguish it."""
    plain = {"none": "no pruning", "weights": "weights pruned"}
    both = [_particular(configurations, source) for source in ALWAYS]
    return [
        ", ".join(part for part in parts if part) or plain.get(c[PRUNING], "pruned")
        for c, *parts in zip(configurations, *both, strict=True)
    ]


def _particular(configurations: Sequence[Mapping[str, str]], source: str) -> list[str]:
    """Returns pruning of one kind in words, "" for those without it."""
    pruned = [c for c in configurations if any(key.startswith(f"{source}.") for key in c)]
    always = [f"{source}.{key}" for key in ALWAYS[source]]
    differing = _differing(pruned, source)
    keys = [key for key in always if key in differing or not differing]
    for key in differing:
        more = [*keys, key]
        if len({_values(c, more) for c in pruned}) > len({_values(c, keys) for c in pruned}):
            keys = more
    keys.sort(key=differing.index if differing else always.index)
    found = []
    for c in configurations:
        parts = [(_last(key), shown(c[key])) for key in keys if key in c]
        # "none" is left out, unless there is nothing else.
        parts = [part for part in parts if part[1] != "none"] or parts[:1]
        found.append(", ".join(f"{name}={value}" for name, value in parts))
    return found


def _values(configuration: Mapping[str, str], keys: Sequence[str]) -> tuple[str | None, ...]:
    return tuple(configuration.get(key) for key in keys)


def _with_place(labels: list[str], places: list[str], taken: Set[str]) -> list[str]:
    """Returns labels, followed by the place of the run if they are not unique."""
    times = Counter(labels) + Counter(taken)
    return [
        f"{label} ({place})" if times[label] > 1 else label
        for label, place in zip(labels, places, strict=True)
    ]


def _tell_apart(configurations: Sequence[Mapping[str, str]], source: str) -> list[str]:
    """Returns the entries of one source that distinguish more of the configurations."""
    parts: list[list[str]] = [[] for _ in configurations]
    for key in _differing(configurations, source):
        more = [
            [*part, f"{_last(key)}={shown(c.get(key, 'none'))}"]
            for part, c in zip(parts, configurations, strict=True)
        ]
        if len(set(map(tuple, more))) > len(set(map(tuple, parts))):
            parts = more
    return [", ".join(part) for part in parts]


def _differing(configurations: Sequence[Mapping[str, str]], source: str) -> list[str]:
    keys = dict.fromkeys(key for c in configurations for key in c if key.split(".")[0] == source)
    found = [key for key in keys if len({c.get(key) for c in configurations}) > 1]
    return sorted(found, key=lambda k: FIRST.index(_last(k)) if _last(k) in FIRST else len(FIRST))


def _last(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _flat(content: object, prefix: str) -> dict[str, str]:
    if isinstance(content, Mapping):
        pairs = [(str(key), value) for key, value in content.items()]
    elif isinstance(content, (list, tuple)) and any(
        isinstance(v, (Mapping, list)) for v in content
    ):
        pairs = [(str(i), value) for i, value in enumerate(content)]
    else:
        return {prefix: _text(content)}
    found: dict[str, str] = {}
    for key, value in pairs:
        skipped = _SEED.search(key) or key in _PLACES or key == "logger"
        found |= {} if skipped else _flat(value, f"{prefix}.{key}")
    return found


def _text(value: object) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_text, value)) + "]"
    return _ADDRESS.sub("", str(value))


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads Python objects in hparams as text."""


def _as_text(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {suffix: loader.construct_mapping(node, deep=True)}
    if isinstance(node, yaml.SequenceNode):
        return {suffix: loader.construct_sequence(node, deep=True)}
    return f"{suffix} {node.value}".strip()


_Loader.add_multi_constructor("", _as_text)


def _parsed(text: str) -> object:
    try:
        found = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return text  # which can still be compared
    return found if _is_small(found) else text


def _is_small(content: object) -> bool:
    """Whether a file has few values: a few lines of nested aliases can make billions."""
    waiting, seen = [content], 0
    while waiting and seen <= _MOST_VALUES:
        part = waiting.pop()
        seen += 1
        if isinstance(part, Mapping):
            waiting += part.values()
        elif isinstance(part, (list, tuple)):
            waiting += part
    return seen <= _MOST_VALUES
