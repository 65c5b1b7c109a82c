"""Which parameters a step multiplies with activations, and what it computes from them before it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_fairprune._model import operations
from lightning_fairprune._model.losses import in_transform
from lightning_fairprune._model.paths import tensors_of
from lightning_fairprune._model.trees import leaves

_LAYERS = frozenset({"linear", *operations.CONVOLUTIONS})  # (input, weight, ...)
_CELLS = frozenset({f"{kind}_cell" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")})
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
# Of two tensors, either of which may be the weight.
_PRODUCTS = frozenset({*operations.PRODUCTS, "tensordot", "inner", "dot", "grouped_mm"}) - _LAYERS
_RANDOM = frozenset({"dropout", "alpha_dropout", "feature_dropout", "bernoulli"})


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A tensor that a step computed from parameters, without activations.

    Args:
        out: the tensor.
        func: that returned it, possibly among others.
        args: of the function, with `Made` and names of parameters in the places of tensors.
        kwargs: likewise.
        place: of the tensor among those that the function returned.
        roots: names of the parameters.
    """

    out: Tensor
    func: Callable[..., Any]
    args: Any
    kwargs: Any
    place: int
    roots: frozenset[str]

    def again(self, values: Mapping[str, Tensor], done: dict[int, Tensor] | None = None) -> Tensor:
        """Returns the tensor as it would be with other values of all its `roots`."""
        done = {} if done is None else done

        def value(part: Any) -> Any:
            if isinstance(part, _Root):
                return values[part.name]
            if isinstance(part, Made):
                return part.again(values, done)
            return part.clone() if isinstance(part, Tensor) else part

        if id(self) not in done:
            args, kwargs = _mapped(value, self.args), _mapped(value, self.kwargs)
            if _in_place(self.func):
                args = (args[0].clone(), *args[1:])
            done[id(self)] = list(leaves(self.func(*args, **kwargs)))[self.place]
        return done[id(self)]

    @property
    def is_random(self) -> bool:
        """Whether chance has a part in it."""
        parts = [*_flat(self.args), *_flat(self.kwargs)]
        return _name(self.func) in _RANDOM or any(
            part.is_random for part in parts if isinstance(part, Made)
        )


@dataclass(frozen=True, slots=True)
class _Root:
    name: str


class Uses(TorchFunctionMode):
    """Observes functions on `parameters` while it is active, and on the tensors of `batch`.

    A parameter is used where it, or what was made of it alone, meets activations in a product.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], batch: Any = None) -> None:
        super().__init__()
        self._roots = {id(parameter): (parameter, name) for name, parameter in parameters.items()}
        self._made: dict[int, Made] = {}
        self._data: dict[int, ref[Tensor]] = {}
        self.direct: set[str] = set()
        """Names of the parameters that are used as they are."""
        self.through: list[Made] = []
        """What is used in the place of parameters."""
        self.mixed: set[str] = set()
        """Names of the parameters that activations weigh and add up to the weight of a layer, another for each sample."""
        self._mixtures: dict[int, tuple[ref[Tensor], frozenset[str]]] = {}
        self.paused = False
        for _, tensor in tensors_of(batch):
            self._set_data(tensor)

    def made(self, tensor: Tensor) -> Made | None:
        """Returns how a tensor was made of parameters."""
        found = self._made.get(id(tensor))
        return found if found is not None and found.out is tensor else None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__iter__ and args[0].ndim:  # whose result would show no tensors
            return iter(self.__torch_function__(Tensor.unbind, types, args))
        out = func(*args, **kwargs)
        given = list(leaves((args, kwargs)))
        if not self.paused and given and not any(map(in_transform, given)):
            self._note(func, args, kwargs, given, out)
        return out

    def _note(
        self, func: Callable[..., Any], args: Any, kwargs: Any, given: list[Tensor], out: Any
    ) -> None:
        rooted = [tensor for tensor in given if self._source(tensor) is not None]
        is_data = any(map(self._is_data, given))
        name = _name(func)
        weights = self._weights(name, args, kwargs, given)
        if weights is not None:
            for tensor in weights:
                self._use(tensor)
            is_data = True
            if name in _LAYERS:
                self.mixed |= self._mixture(weights)
            else:
                self._set_mixture(
                    out, {s.name for s in map(self._source, weights) if isinstance(s, _Root)}
                )
        elif is_data:
            self._set_mixture(out, self._mixture(given))
        elif rooted and name not in operations.SHAPES:
            sources = [self._source(tensor) for tensor in rooted]
            roots = frozenset(
                name
                for source in sources
                for name in (source.roots if isinstance(source, Made) else [source.name])  # type: ignore[union-attr]
            )
            parts = self._parts(args), self._parts(kwargs)
            for place, tensor in enumerate(leaves(out)):
                if id(tensor) not in self._roots:
                    self._made[id(tensor)] = Made(tensor, func, *parts, place, roots)
        if is_data:
            for tensor in leaves(out):
                self._set_data(tensor)

    def _weights(
        self, name: str, args: Any, kwargs: Any, given: list[Tensor]
    ) -> list[Tensor] | None:
        """Returns the weights of a product with activations, None for any other function."""
        if name in _LAYERS:
            return [t for t in (*args[1:2], kwargs.get("weight")) if isinstance(t, Tensor)]
        if name == "bilinear":
            return [t for t in (*args[2:3], kwargs.get("weight")) if isinstance(t, Tensor)]
        if name in _CELLS:
            return list(leaves(args[2:4]))
        if name in _RECURRENT:
            return [t for part in args if isinstance(part, list) for t in leaves(part)]
        if name == "multi_head_attention_forward":
            return list(leaves((args[3:], kwargs)))
        if name not in _PRODUCTS or not any(map(self._is_data, given)):
            return None  # a product of parameters, and of buffers, makes another weight
        return given

    def _use(self, tensor: Tensor) -> None:
        source = self._source(tensor)
        if isinstance(source, _Root):
            self.direct.add(source.name)
        elif source is not None:
            (name, *others) = source.roots
            parameter = next(p for p, known in self._roots.values() if known == name)
            if not others and _share_memory(parameter, tensor):
                self.direct.add(name)
            else:
                self.through.append(source)

    def _mixture(self, given: list[Tensor]) -> set[str]:
        known = ((tensor, self._mixtures.get(id(tensor))) for tensor in given)
        return {name for tensor, kept in known if kept and kept[0]() is tensor for name in kept[1]}

    def _set_mixture(self, out: Any, names: set[str]) -> None:
        for tensor in leaves(out) if names else ():
            self._mixtures[id(tensor)] = ref(tensor), frozenset(names)

    def _source(self, tensor: Tensor) -> _Root | Made | None:
        found = self._roots.get(id(tensor))
        if found is not None and found[0] is tensor:
            return _Root(found[1])
        return self.made(tensor)

    def _is_data(self, tensor: Tensor) -> bool:
        found = self._data.get(id(tensor))
        return found is not None and found() is tensor

    def _set_data(self, tensor: Tensor) -> None:
        if id(tensor) not in self._roots:
            self._made.pop(id(tensor), None)
            self._data[id(tensor)] = ref(tensor)

    def _parts(self, tree: Any) -> Any:
        return _mapped(
            lambda part: (self._source(part) or part) if isinstance(part, Tensor) else part, tree
        )


def _mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _mapped(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple | list) and not isinstance(tree, torch.Size):
        values = [_mapped(function, value) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    return function(tree)


def _flat(tree: Any) -> Iterator[Any]:
    if isinstance(tree, Mapping):
        tree = tuple(tree.values())
    if isinstance(tree, tuple | list):
        for value in tree:
            yield from _flat(value)
    else:
        yield tree


def _name(func: Callable[..., Any]) -> str:
    return str(getattr(func, "__name__", "")).strip("_")


def _in_place(func: Callable[..., Any]) -> bool:
    name = str(getattr(func, "__name__", ""))
    return (name.endswith("_") and not name.startswith("__")) or name.startswith("__i")


def _share_memory(one: Tensor, other: Tensor) -> bool:
    try:
        return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse and wrapped tensors have no storage
        return False
