"""Working with a model and leaving it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["device_of", "evaluating", "held"]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module in eval mode and each of its parts back as it was."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def device_of(model: nn.Module) -> torch.device:
    """Returns where the model is: the device of its first parameter."""
    return next(model.parameters()).device


@contextmanager
def held(model: nn.Module) -> Iterator[None]:
    """Puts the model into eval mode with gradients on; whatever happens inside, everything is back afterwards.

    Takes a copy of parameters and buffers: layers may write to either in a forward pass, such as an embedding
    with `max_norm`.
    """
    tensors = [*model.parameters(), *model.buffers()]
    for tensor in tensors:
        if tensor.is_inference():
            raise ValueError(
                "`model` must be made outside of inference mode, got an inference tensor of shape "
                f"{list(tensor.shape)}: gradients need ordinary ones."
            )
    modules = list(model.modules())
    device = device_of(model)
    cuda = sorted({tensor.device.index for tensor in tensors if tensor.device.type == "cuda"})
    modes = [module.training for module in modules]
    plain = [_tensors(module) for module in modules]
    # The tables of names as well: `self.buffer = ...` puts another tensor there.
    tables = [vars(module)[kind] for module in modules for kind in ("_parameters", "_buffers")]
    entries = [dict(table) for table in tables]
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    values = [tensor.detach().clone() for tensor in tensors]
    fast = torch.backends.mha.get_fastpath_enabled()
    with torch.random.fork_rng(cuda):
        try:
            for module in modules:
                module.training = False
            # The fused kernels of attention have no backward pass.
            torch.backends.mha.set_fastpath_enabled(False)
            with (
                torch.inference_mode(False),
                torch.enable_grad(),
                torch.autocast(device.type, enabled=False),
            ):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for table, entry in zip(tables, entries, strict=True):
                table.clear()
                table.update(entry)
            for module, mode, before in zip(modules, modes, plain, strict=True):
                module.training = mode
                for name in _tensors(module).keys() - before.keys():
                    del vars(module)[name]
                vars(module).update(before)
            for parameter, flag, grad in flags:
                parameter.requires_grad_(flag)
                parameter.grad = grad
            for tensor, value in zip(tensors, values, strict=True):
                # By `data`, so that a backward pass that is still to come does not see a write.
                tensor.data.copy_(value)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Returns plain attributes: weights that a hook computes before every call, kept activations."""
    return {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
