"""What exact gradient norms cost per sample, next to ordinary training steps and to the other ways to get them.

    python benchmarks/grand.py [--rounds 5] [--batch 64] [--threads 1] [--models resnet18 resnet18-cifar vit convnext]

Every round takes, in turn, a batched forward and backward pass as in training, `grad_norm`, a pass per sample,
and `torch.func` (vmap of grad), on images of 32 x 32 pixels in float32: two batches for the first two, fewer
samples for the others. The ratio is the median over rounds of time per sample over that of the ordinary pass in
the same round. Peak memory is what one batch adds to a fresh process with model and data (on a GPU: to
what is allocated). The first call of `grad_norm` tries its ways on two samples; this is timed with the rest.
Needs torchvision. One thread on the CPU; the GPU follows where there is one.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_fairprune.gradients import grad_norm

LOSS = nn.CrossEntropyLoss()
ALONE = 16  # samples of the ways that take long


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "vit":
        return torchvision.models.VisionTransformer(32, 4, 4, 4, 128, 256, num_classes=10)
    if name == "convnext":
        return torchvision.models.convnext_tiny(num_classes=10)
    model = torchvision.models.resnet18(num_classes=10)
    if name == "resnet18-cifar":
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return model


def ordinary(model: nn.Module, x: Tensor, y: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    LOSS(model(x), y).backward()


def ours(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return grad_norm(model, [(x, y)], LOSS)


def alone(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    norms = []
    for i in range(len(x)):
        grads = torch.autograd.grad(LOSS(model(x[i : i + 1]), y[i : i + 1]), model.parameters())
        norms.append(torch.stack([g.square().sum() for g in grads]).sum().sqrt())
    return torch.stack(norms)


def functional(model: nn.Module, x: Tensor, y: Tensor, chunk: int = 8) -> Tensor:
    values = {name: p.detach() for name, p in model.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return LOSS(functional_call(model, values, (x[None],)), y[None])

    def norm(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        grads = grad(loss)(values, x, y)
        return torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()

    with sdpa_kernel(SDPBackend.MATH):
        return vmap(norm, in_dims=(None, 0, 0), chunk_size=chunk)(values, x, y)


WAYS: dict[str, Callable[..., Tensor | None]] = {
    "ordinary pass": ordinary,
    "grad_norm": ours,
    "pass per sample": alone,
    "torch.func": functional,
}


def images(size: int, device: str) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 3, 32, 32, device=device), torch.randint(10, (size,), device=device)


def seconds(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def measure(name: str, device: str, rounds: int, batch: int) -> dict[str, list[float]]:
    """Returns the seconds per sample of each way, by round."""
    model = network(name).to(device).eval()
    x, y = images(2 * batch, device)
    pairs = list(zip(x.split(batch), y.split(batch), strict=True))
    runs: dict[str, tuple[Callable[[], object], int]] = {
        "ordinary pass": (lambda: [ordinary(model, *pair) for pair in pairs], 2 * batch),
        "grad_norm": (lambda: grad_norm(model, pairs, LOSS), 2 * batch),
        "pass per sample": (lambda: alone(model, x[:ALONE], y[:ALONE]), ALONE),
        "torch.func": (lambda: functional(model, x[:ALONE], y[:ALONE]), ALONE),
    }
    error = (
        (grad_norm(model, pairs, LOSS)[:ALONE] / alone(model, x[:ALONE], y[:ALONE]) - 1).abs().max()
    )
    print(
        f"\n{name} on {device}, B = {batch}: largest relative difference to a pass per sample {error:.1e}"
    )
    for run, _ in runs.values():
        run()  # warm up
    times: dict[str, list[float]] = {way: [] for way in runs}
    order = list(runs)
    for turn in range(rounds):
        for way in order[turn % 4 :] + order[: turn % 4]:
            run, size = runs[way]
            times[way].append(seconds(run, device) / size)
    return times


def peak(name: str, way: str, device: str, batch: int) -> float:
    """Returns the MB that a batch adds to model and data."""
    torch.set_num_threads(1)
    model = network(name).to(device).eval()
    x, y = images(batch, device)
    if device == "cuda":
        WAYS[way](model, x[:2], y[:2])
        model.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        WAYS[way](model, x, y)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.no_grad():
        model(x[:1])  # loads libraries
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    WAYS[way](model, x, y)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (after - before) / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--models", nargs="+", default=["resnet18", "resnet18-cifar", "vit", "convnext"]
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}")
    for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]:
        if device == "cuda":
            print(torch.cuda.get_device_name())
        # First of all: a process starts with the peak of the one that started it.
        peaks = {}
        for name, way in itertools.product(arguments.models, WAYS):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                peaks[name, way] = pool.apply(peak, (name, way, device, arguments.batch))
        for name in arguments.models:
            times = measure(name, device, arguments.rounds, arguments.batch)
            print(
                f"{'':16} {'ms/sample':>10} {'ratio':>7} {'lowest':>7} {'highest':>8} {'peak MB':>8}"
            )
            for way, values in times.items():
                ratios = [a / b for a, b in zip(values, times["ordinary pass"], strict=True)]
                print(
                    f"{way:16} {statistics.median(values) * 1e3:10.3f} {statistics.median(ratios):7.2f} "
                    f"{min(ratios):7.2f} {max(ratios):8.2f} {peaks[name, way]:8.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
