"""Prints docs/reference.md: every public name with the first sentence of its documentation.

python tests/reference.py > docs/reference.md
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType

import lightning_fairprune as lfp

PACKAGE = "lightning_fairprune"
HEAD = """# Reference

Every public name, by the module that it is imported from. `help(name)` has formula, arguments, shapes, errors and
an example."""


def namespaces() -> dict[str, ModuleType]:
    """Returns the package and its public modules, by name."""
    inner = [m.name for m in pkgutil.iter_modules(lfp.__path__) if not m.name.startswith("_")]
    return {
        PACKAGE: lfp,
        **{f"{PACKAGE}.{name}": importlib.import_module(f"{PACKAGE}.{name}") for name in inner},
    }


def public(module: ModuleType) -> dict[str, object]:
    """Returns the classes and functions that a module offers."""
    found = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    return {
        name: value
        for name, value in found.items()
        if inspect.isclass(value) or inspect.isfunction(value)
    }


def first_sentence(value: object) -> str:
    text = inspect.getdoc(value) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    plain = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", paragraph)
    sentence = re.match(r".*?[.:](?=\s+[A-Z`]|$)", plain)
    return (sentence[0] if sentence else plain).rstrip(".:")


def page() -> Iterator[str]:
    yield HEAD
    for name, module in namespaces().items():
        members = public(module)
        if not members:
            continue
        yield f"\n## {name}\n\n{first_sentence(module)}\n"
        yield "| name | |\n|---|---|"
        for member, value in sorted(members.items(), key=lambda item: item[0].lower()):
            yield f"| `{member}` | {first_sentence(value).replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    print("\n".join(page()))
