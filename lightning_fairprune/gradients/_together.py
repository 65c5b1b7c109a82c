"""Losses and gradient norms of all samples of a batch at once, each as if it were alone.

torch.vmap maps "the model and the loss of one sample" over the samples, so whatever mixes, sorts or chooses samples sees
a single one, and what cannot be computed this way raises. A function of torch that uses a parameter is computed for all
samples together, and its rule has the gradient norms from its input and the gradient of its output; elsewhere a parameter
is replaced by a copy for each sample.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from lightning_fairprune._model.batches import Batch
from lightning_fairprune._model.trees import leaves, mapped
from lightning_fairprune.gradients._calls import CALLS, Call
from lightning_fairprune.gradients._layers import split
from lightning_fairprune.gradients._loss import Loss
from lightning_fairprune.gradients._recurrent import UNROLLED
from lightning_fairprune.gradients._uses import Uses


class Surprise(Exception):
    """The gradients of these samples cannot be computed together."""


class TooLarge(Exception):
    """The copies of parameters for each sample take more memory than allowed: take fewer samples."""


def together(
    model: nn.Module, chosen: Iterable[nn.Parameter], batch: Batch, loss: Loss, memory: int
) -> tuple[Tensor, Tensor]:
    """Returns losses and squared gradient norms, [B] each; may raise any exception."""
    seen = _Functions(model, chosen, batch.size, memory)
    tree = (batch.inputs, batch.target)

    def of_one(index: Tensor, *tensors: Tensor) -> Tensor:
        rest = iter(tensors)
        inputs, target = mapped(lambda _: next(rest).unsqueeze(0), tree)
        seen.index = index
        with seen:
            return loss.of_one(Batch(inputs, target, 1).through(model), target)

    index = torch.arange(batch.size, device=next(leaves(batch.inputs)).device)
    # vmap loops over the samples in the other kernels of attention, and warns wherever it loops, which the user
    # cannot change.
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        # What is random is found out by doing it twice.
        losses = torch.vmap(of_one, randomness="same")(index, *leaves(tree))
    return losses.detach(), seen.norms2(losses)


class _Functions(TorchFunctionMode):
    """Sees every call of a function of torch in a forward pass under vmap."""

    index: Tensor  # a number for each sample, so that vmap calls `_Physical.vmap`

    def __init__(
        self, model: nn.Module, chosen: Iterable[nn.Parameter], size: int, memory: int
    ) -> None:
        super().__init__()
        self._chosen: dict[int, Tensor] = {id(p): p for p in chosen}
        self._plain = {id(t) for t in (*model.parameters(), *model.buffers())}
        self._size, self._memory = size, memory
        self._uses = Uses(memory)
        self._anchors: list[Tensor] = []
        self._copies: dict[int, Tensor] = {}  # [B, *shape] of parameters used without a rule
        self._batched: dict[int, Tensor] = {}  # the same as vmap sees them

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():  # the model turned gradients off: no use
            return func(*args, **kwargs)
        known = CALLS.get(func)
        call = known(*args, **kwargs) if known is not None else None
        if call is not None and self._is_plain(call):
            return _physical(lambda x: self._listened(call, x), self.index, call.x)
        if func in _METADATA or not any(id(t) in self._chosen for t in leaves((args, kwargs))):
            return func(*args, **kwargs)
        if func in UNROLLED:
            with self:
                return UNROLLED[func](*args, **kwargs)
        if isinstance(func, FunctionType):
            with self:
                return _unchecked(func)(*args, **kwargs)
        args, kwargs = mapped(self._of_each, (tuple(args), kwargs))
        return func(*args, **kwargs)

    def _is_plain(self, call: Call) -> bool:
        """Whether a call uses parameters and buffers themselves, which are the same for all samples."""
        tensors = [t for t, _ in call.parts if t is not None]
        return bool(tensors) and all(id(t) in self._plain for t in tensors)

    def _listened(self, call: Call, x: Tensor) -> Tensor:
        rules = [(t, rule) for t, rule in call.parts if id(t) in self._chosen and rule]
        lead = x.shape[: call.merged]
        y = call.run(x.flatten(0, call.merged - 1))
        if rules:
            if not y.requires_grad:  # nothing before it does: the backward pass ends here
                self._anchors.append(y.new_zeros(()).requires_grad_())
                y = y + self._anchors[-1]
            elif y._is_view():  # a change in place would lose the hook
                y = y.clone()
            self._listen(rules, x.detach(), y, lead)
        return split(y, lead)

    def _listen(self, rules: list[Any], x: Tensor, y: Tensor, lead: torch.Size) -> None:
        for parameter, _ in rules:
            self._uses.expect(parameter)
        kept = [x]
        version = x._version

        def collect(g: Tensor) -> None:
            x = kept.pop()  # the hook lives as long as the graph, the input need not
            if x._version != version and any(rule.reads for _, rule in rules):
                raise Surprise("an input of a layer is changed in place")
            for parameter, rule in rules:
                self._uses.add(id(parameter), rule, x, split(g, lead))

        y.register_hook(collect)  # type: ignore[no-untyped-call]

    def _of_each(self, tensor: Tensor) -> Tensor:
        """Returns a copy of a parameter for each sample, and any other tensor itself."""
        key = id(tensor)
        if key not in self._chosen:
            return tensor
        if key not in self._batched:
            self._batched[key] = _physical(lambda _: self._copy(tensor), self.index, self.index)
        return self._batched[key]

    def _copy(self, parameter: Tensor) -> Tensor:
        """Returns [B, *shape], to be differentiated."""
        copies = parameter.detach().expand(self._size, *parameter.shape).requires_grad_()
        self._copies[id(parameter)] = copies
        self._uses.expect(parameter)
        each = sum(c[0].numel() * c.element_size() for c in self._copies.values())
        if self._size > 1 and 2 * each * self._size > self._memory:
            raise TooLarge
        return copies

    def norms2(self, losses: Tensor) -> Tensor:
        """Runs the backward pass and returns the squared norms of all parameters together, [B]."""
        ends = [*self._copies.values(), *self._anchors, *self._chosen.values()]
        if losses.requires_grad:
            found = torch.autograd.grad(losses.sum(), ends, allow_unused=True)
            if any(g is not None for g in found[len(ends) - len(self._chosen) :]):
                raise Surprise("a parameter is used where no function of torch is called")
            for key, g in zip(self._copies, found, strict=False):
                if g is not None:
                    self._uses.add_whole(key, g)
        return self._uses.norms2(losses.detach())


class _Physical(torch.autograd.Function):
    """A function of the tensor behind the samples that vmap shows one of, the samples first."""

    @staticmethod
    def forward(function: Callable[[Tensor], Tensor], index: Tensor, x: Tensor) -> Tensor:
        raise Surprise("another transform of torch.func is inside the model")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise Surprise("another transform of torch.func is inside the model")

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, function: Callable[[Tensor], Tensor], index: Tensor, x: Tensor
    ) -> tuple[Tensor, int]:
        if in_dims[1] is None:
            raise Surprise("another transform of torch.func is inside the model")
        if in_dims[2] is None:  # the same for all samples
            return function(x.expand(info.batch_size, *x.shape)), 0
        return function(x.movedim(in_dims[2], 0)), 0


def _physical(function: Callable[[Tensor], Tensor], index: Tensor, x: Tensor) -> Tensor:
    return cast(Tensor, _Physical.apply(function, index, x))


def _unchecked(function: FunctionType) -> Callable[..., Any]:
    """Returns one of torch's Python functions without its question whether a mode wants its call.

    So the mode sees the calls inside, such as the projections of attention.
    """
    no = dict.fromkeys(
        ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"),
        lambda *_: False,
    )
    copy = FunctionType(
        function.__code__,
        {**function.__globals__, **no},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_METADATA = {
    *(Tensor.dim, Tensor.size, Tensor.numel, Tensor.stride, Tensor.element_size, Tensor.__len__),
    *(Tensor.is_contiguous, Tensor.is_floating_point, Tensor.__hash__, Tensor.data_ptr),
    *(
        getattr(Tensor, name).__get__
        for name in (
            *("shape", "dtype", "device", "ndim", "layout", "is_cuda", "is_sparse", "is_nested"),
            *("is_leaf", "requires_grad", "grad", "_version", "is_quantized", "is_meta"),
        )
    ),
}
