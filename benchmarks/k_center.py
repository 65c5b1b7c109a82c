"""k_center next to its straightforward form: seconds, ratio and memory, in turn, on one thread.

    python benchmarks/k_center.py [--rounds 3] [--sizes 10000x512x500 50000x512x5000] [--data isotropic ...]

The straightforward form computes the distances of all samples to each new centre by one matrix-vector product,
keeps them as a row of a budget x N table, and each turn takes the minimum over the rows so far.
The form with one row updates a running minimum instead; it is here to tell what the table costs.
A form that would exceed `--limit` seconds is stopped at a number of centres known before and its time is
extended: the product is linear in the centres, the minimum over the table quadratic. Such a
time is marked with ~, and its memory is that of a table as far as it came. `same` counts the centres
before a form in float32 first takes another than k_center, which is checked to be the less far of two.

Memory is the peak of the resident set above that before the call, each form once in a process of its own (Linux).
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable

import torch

from lightning_fairprune.geometry import k_center


def begin_at(features: torch.Tensor) -> int:
    return int((features - features.mean(0)).square().sum(1).argmin())


def with_table(features: torch.Tensor, budget: int, stop: int) -> tuple[list[int], float, float]:
    """Returns the centres, and the seconds spent in the products and in the minima."""
    square = features.square().sum(1)
    table = torch.empty(budget, len(features))
    order, products, minima = [begin_at(features)], 0.0, 0.0
    while len(order) < stop:
        begin = time.perf_counter()
        last = order[-1]
        row = table[len(order) - 1]
        torch.mv(features, features[last], out=row).mul_(-2).add_(square).add_(square[last])
        middle = time.perf_counter()
        nearest = table[: len(order)].amin(0)
        nearest[order] = -torch.inf
        order.append(int(nearest.argmax()))
        products += middle - begin
        minima += time.perf_counter() - middle
    return order, products, minima


def with_one_row(features: torch.Tensor, budget: int, stop: int) -> tuple[list[int], float, float]:
    square = features.square().sum(1)
    nearest = torch.full((len(features),), torch.inf)
    order = [begin_at(features)]
    begin = time.perf_counter()
    while len(order) < stop:
        last = order[-1]
        row = torch.mv(features, features[last]).mul_(-2).add_(square).add_(square[last])
        nearest = torch.minimum(nearest, row)
        nearest[last] = -torch.inf
        order.append(int(nearest.argmax()))
    return order, time.perf_counter() - begin, 0.0


def ours(features: torch.Tensor, budget: int, stop: int) -> tuple[list[int], float, float]:
    begin = time.perf_counter()
    order = k_center(features, stop).tolist()
    return order, time.perf_counter() - begin, 0.0


FORMS: dict[str, Callable[..., tuple[list[int], float, float]]] = {
    "table": with_table,
    "one row": with_one_row,
    "k_center": ours,
}


def made_up(kind: str, n: int, d: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g)
    if kind == "clusters":  # 100 classes, spread 0.3
        return 0.3 * x + torch.randn(100, d, generator=g)[torch.randint(100, (n,), generator=g)]
    if kind == "relu":  # 16 directions and noise, as behind a network's last non-linearity
        low = torch.randn(n, 16, generator=g) @ torch.randn(16, d, generator=g)
        return (low + 0.5 * x).relu()
    return x


def resident() -> float:
    """Returns the peak since the last reset; `ru_maxrss` would be that of the process before."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))


def peak(name: str, kind: str, n: int, d: int, budget: int, stop: int) -> float:
    """Returns the MiB that a form adds to what the features take."""
    torch.set_num_threads(1)
    x = made_up(kind, n, d)
    FORMS[name](x[:2000], min(budget, 20), 20)  # what libraries load at first use
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak of making up the features
    before = resident()
    FORMS[name](x, budget, stop)
    return resident() - before


def agreement(features: torch.Tensor, exact: list[int], order: list[int]) -> int:
    """Returns how many centres are the same before a float32 form takes the less far of two nearly equal."""
    for turn, (ours, theirs) in enumerate(zip(exact, order, strict=False)):
        if ours != theirs:
            chosen = features[exact[:turn]].double()
            far, less = ((features[i].double() - chosen).norm(dim=1).min() for i in (ours, theirs))
            assert far * (1 - 1e-5) < less < far, "k_center did not choose the farthest"
            return turn
    return len(order)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", default=["10000x512x500", "50000x512x5000"])
    parser.add_argument("--data", nargs="+", default=["isotropic", "clusters", "relu"])
    parser.add_argument("--limit", type=float, default=60.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, 1 thread, {options.rounds} rounds")
    print(
        f"{'n':>6} {'d':>4} {'k':>5}  {'data':10} {'form':9} {'s':>8}  table/it  {'MiB':>6}  same"
    )
    for size in options.sizes:
        n, d, budget = map(int, size.split("x"))
        for kind in options.data:
            measure(kind, n, d, budget, options.rounds, options.limit)


def measure(kind: str, n: int, d: int, budget: int, rounds: int, limit: float) -> None:
    x = made_up(kind, n, d)
    stop = dict.fromkeys(FORMS, budget)
    for name in ("table", "one row"):  # how far within the limit, from a short run
        trial = min(budget, 100)
        _, linear, quadratic = FORMS[name](x, budget, trial)
        whole = linear * budget / trial + quadratic * (budget / trial) ** 2
        if whole > limit:
            share = (limit / whole) ** (0.5 if quadratic else 1.0)
            stop[name] = max(trial, int(budget * share))
    seconds: dict[str, list[float]] = {name: [] for name in FORMS}
    same: dict[str, int] = {}
    names = list(FORMS)
    for turn in range(rounds):
        orders = {}
        for name in names[turn % 3 :] + names[: turn % 3]:
            order, linear, quadratic = FORMS[name](x, budget, stop[name])
            share = budget / stop[name]
            seconds[name].append(linear * share + quadratic * share**2)
            orders[name] = order
        for name, order in orders.items():
            same[name] = agreement(x, orders["k_center"], order)
    for name in names:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            memory = pool.apply(peak, (name, kind, n, d, budget, stop[name]))
        ratio = statistics.median(
            a / b for a, b in zip(seconds["table"], seconds[name], strict=True)
        )
        mark = "~" if stop[name] < budget else " "
        print(
            f"{n:>6} {d:>4} {budget:>5}  {kind:10} {name:9} {mark}"
            f"{statistics.median(seconds[name]):>7.2f}  {ratio:>8.1f}  {memory:>6.0f}  {same[name]:>4}",
            flush=True,
        )


if __name__ == "__main__":
    main()
