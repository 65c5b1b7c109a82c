"""Reading logits and targets of an unchanged training or validation step, in two ways.

A function mode sees every call of the loss, in any step, and costs a few microseconds for each tensor function that the
step calls. The autograd graph of the loss, where there is one, holds what cross-entropy saved for its backward pass, and
costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_fairprune._model.losses import (
    REMEDY,
    LossCall,
    ignoring,
    in_transform,
    other_samples,
    plain,
)

# The loss sits within a few nodes of the value that is sent backward: divided by the accumulation,
# scaled for half precision, added to a penalty, weighted in a mixup.
_MOST_NODES = 64


def from_graph(loss: Tensor, batch_size: int) -> tuple[Tensor, Tensor] | None:
    """Returns logits [B, C] and target [B] of the first cross-entropy behind `loss`, without gradient, or None.

    For cross-entropy and ``nll_loss`` PyTorch saves the log-probabilities, which are logits of the same softmax, and the
    targets. Of several losses of `batch_size` samples the one computed first counts.

    Example:
        >>> import torch
        >>> import torch.nn.functional as F
        >>> logits = torch.zeros(2, 4, requires_grad=True)
        >>> loss = F.cross_entropy(logits, torch.tensor([3, 1])) / 2
        >>> from_graph(loss, 2)[1]
        tensor([3, 1])
    """
    found: list[tuple[int, Tensor, Tensor]] = []
    waiting, seen = [loss.grad_fn], 0
    while waiting and seen < _MOST_NODES:
        node: Any = waiting.pop(0)
        seen += 1
        if node is None:
            continue
        if node.name() == "NllLossBackward0":
            logits, target = node._saved_self, node._saved_target
            if logits.ndim == 2 and len(logits) == len(target) == batch_size:
                target = ignoring(target.detach(), _signed(node._saved_ignore_index))
                found.append((node._sequence_nr(), plain(logits), plain(target)))
        else:  # what lies behind a loss is the network
            waiting += [before for before, _ in node.next_functions]
    if not found:
        return None
    _, logits, target = min(found, key=lambda hit: hit[0])
    return logits, target


def _signed(number: int) -> int:
    """Returns a 64-bit number that autograd saved without its sign."""
    return number - 2**64 if number >= 2**63 else number


class LossCapture(TorchFunctionMode):
    """Records the ``(logits, target)`` of the classification losses that a step computes while the mode is active.

    It sees every call of the losses that `LossCall` knows, by function or module, in automatic or manual optimisation, eager
    or compiled, without a copy or a wait for the device. The log-probabilities given to ``nll_loss`` are logits of the same
    softmax.

    Example:
        >>> import torch
        >>> import torch.nn.functional as F
        >>> capture = LossCapture()
        >>> capture.enter()
        >>> _ = F.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 2]))
        >>> capture.leave()
        >>> logits, target = capture.pick(2)
        >>> target
        tensor([0, 2])
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_on = False
        self.calls: list[LossCall] = []
        """The calls since the last entry."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        call = LossCall.of(func, args, kwargs)
        if call is not None:
            # Without the graph, which would live until the next step.
            self.calls.append(call.detached())
        return func(*args, **kwargs)

    @property
    def noted(self) -> int:
        """Number of calls since the last entry."""
        return len(self.calls)

    def enter(self) -> None:
        """Starts recording calls; forgets the earlier ones."""
        self.calls = []
        self._switch_on()

    def _switch_on(self) -> None:
        if not self._is_on:
            self.__enter__()  # type: ignore[no-untyped-call]
            self._is_on = True

    def leave(self) -> None:
        """Stops recording calls; may be called more than once."""
        if self._is_on:
            self._is_on = False
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def pick(self, batch_size: int | None = None) -> tuple[Tensor, Tensor]:
        """Returns the first recorded ``(logits [B, C], target [B])`` that fits the batch, of any size for None.

        Mixup and auxiliary heads call the loss more than once; the first call with one logit row and one class index per
        sample counts. Raises a ValueError that says what the step called instead.
        """
        for call in self.calls:
            logits, target = call.input, call.target
            if (
                call.whole
                and not in_transform(call.input)
                and logits.ndim == 2
                and target.ndim == 1
                and len(logits) == len(target)
                and (batch_size is None or len(logits) == batch_size)
            ):
                return plain(logits), call.labels()
        raise ValueError(self.why_nothing_fits(batch_size))

    def why_nothing_fits(self, batch_size: int | None) -> str:
        if not self.calls:
            return (
                "the step returned no 'logits' and 'target' and never called "
                f"torch.nn.functional.cross_entropy or another loss that is known: {REMEDY}"
            )
        logits, target = self.calls[0].input, self.calls[0].target
        if target.is_floating_point():
            return (
                "targets must be one class index per sample, got class probabilities of shape "
                f"{list(target.shape)}; soft and multi-label targets have no class to balance. "
                f"If each sample has one true class, {REMEDY}"
            )
        if logits.ndim == 2 and len(logits) == len(target):
            return other_samples(len(logits), batch_size)
        wanted = "[B, C]" if batch_size is None else f"[{batch_size}, C]"
        return (
            f"the loss must be given logits {wanted} and one class index per sample, got logits "
            f"{list(logits.shape)} and targets {list(target.shape)}: {REMEDY}"
        )
