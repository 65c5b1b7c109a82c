"""Quotas where the best answer is known: thresholds learned from pruned samples next to the closed forms.

Class y is N(mu_y, sigma_y^2) on a line, mu = (-1, 1); a threshold of least empirical error is learned from the
samples that are kept. The rules see the recalls of the threshold that all samples give.

    python benchmarks/gaussian_mixtures.py                                     # the table, under a minute
    python benchmarks/gaussian_mixtures.py --figure docs/figures/gaussian_mixtures.png
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

import lightning_fairprune as lfp

MIXTURES = [(0.5, 1.0, 0.5), (0.5, 1.0, 0.3), (0.5, 1.0, 0.7)]  # sigma_0, sigma_1, share of class 0
DENSITY = 0.3
RULES = {
    "random": lfp.quotas.proportional,
    "equal classes": lfp.quotas.balanced,
    "DRoP": lfp.quotas.drop,
    "DRoP, published code": lfp.quotas.drop_reference,
    "Minimax": None,  # twenty rounds, each from the recalls of the last threshold
}
COLOURS = dict(
    zip(RULES, ("#555555", "#E69F00", "#0072B2", "#56B4E9", "#D55E00"), strict=True)
)  # Okabe and Ito


def closed_threshold(s0: float, s1: float, q: float) -> float:
    """The threshold of least average risk where the classes have sizes q : 1."""
    spread = s1**2 - s0**2
    root = 4 + 2 * spread * math.log(q * s1 / s0)
    return (-(s1**2) - s0**2 + s0 * s1 * math.sqrt(root)) / spread


def risks(s0: float, s1: float, t: float) -> tuple[float, float]:
    def phi(z: float) -> float:
        return 0.5 * math.erfc(-z / math.sqrt(2))

    return phi((-1 - t) / s0), phi((t - 1) / s1)


def learned_threshold(x: Tensor, y: Tensor) -> float:
    """The middle of the gap at which calling everything above it 1 errs least often."""
    x, order = x.sort()
    y = y[order]
    errors = torch.cat([(y == 0).sum()[None], (y == 0).sum() + (2 * y - 1).cumsum(0)])
    best = int(errors.argmin())
    return float(x[max(best - 1, 0) : best + 1].mean())


def samples(s0: float, s1: float, share: float, n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = (torch.arange(n) >= round(share * n)).long()
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    return 2 * y - 1 + noise * torch.tensor([s0, s1], dtype=torch.float64)[y], y


def pruned(x: Tensor, y: Tensor, quota: Tensor, seed: int) -> float:
    kept = lfp.select(y, quota, seed=seed).indices
    return learned_threshold(x[kept], y[kept])


def one_seed(mixture: tuple[float, float, float], n: int, seed: int) -> dict[str, float]:
    """Returns the threshold that each rule leads to."""
    x, y = samples(*mixture, n, seed)
    sizes, budget = torch.bincount(y), round(DENSITY * n)

    def recall(t: float) -> Tensor:
        right = ((x > t).long() == y).double()
        return torch.stack([right[y == k].mean() for k in (0, 1)])

    full = learned_threshold(x, y)
    found = {"all samples": full}
    for name, rule in RULES.items():
        if rule is None:
            rounds, t = lfp.quotas.Minimax(step=4.0, leak=0.0, worst=1e-9), full
            for i in range(20):
                t = pruned(x, y, rounds(sizes, recall(t), budget), seed + i)
            found[name] = t
        elif rule in (lfp.quotas.proportional, lfp.quotas.balanced):
            found[name] = pruned(x, y, rule(sizes, budget), seed)
        else:
            found[name] = pruned(x, y, rule(sizes, recall(full), budget), seed)
    return found


def expected(mixture: tuple[float, float, float]) -> dict[str, float]:
    """The same in closed form."""
    s0, s1, share = mixture
    full = closed_threshold(s0, s1, share / (1 - share))
    r0, r1 = risks(s0, s1, full)
    ratios = {
        "all samples": share / (1 - share),
        "random": share / (1 - share),
        "equal classes": 1.0,
        "DRoP": share * r0 / ((1 - share) * r1),
        "DRoP, published code": r0 / r1,
        "Minimax": s0 / s1,
    }
    return {name: closed_threshold(s0, s1, q) for name, q in ratios.items()}


def figure(results: dict[tuple[float, float, float], dict[str, Tensor]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chart = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(chart)
    axes = chart.subplots(1, len(results), sharey=True)
    for axis, (mixture, found) in zip(axes, results.items(), strict=True):
        s0, s1, share = mixture
        grid = torch.linspace(-0.9, 0.2, 200).tolist()
        axis.plot(grid, [max(risks(s0, s1, t)) for t in grid], color="#999999", zorder=1)
        best = -(s1 - s0) / (s0 + s1)
        axis.axvline(best, color="#999999", linestyle=(0, (4, 3)), linewidth=1, zorder=0)
        for name, thresholds in found.items():
            if name == "all samples":
                continue
            mean, sd = float(thresholds.mean()), float(thresholds.std())
            worst = [max(risks(s0, s1, t)) for t in thresholds.tolist()]
            axis.errorbar(
                mean,
                sum(worst) / len(worst),
                xerr=2 * sd,
                fmt="o",
                color=COLOURS[name],
                markersize=5,
                label=name,
            )
            t = expected(mixture)[name]
            axis.plot(
                t, max(risks(s0, s1, t)), "o", color=COLOURS[name], markersize=12, fillstyle="none"
            )
        axis.set_title(f"class 0: {100 * share:.0f} % of the samples", fontsize=10)
        axis.set_xlabel("threshold")
        axis.set_xlim(-0.9, 0.2)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(0.06, 0.3)
    axes[0].set_ylabel("worst-class risk")
    handles, labels = axes[0].get_legend_handles_labels()
    chart.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    print(
        "sigma_0 sigma_1 share  rule                   learned (sd)     closed     z   worst risk"
    )
    for mixture in MIXTURES:
        runs = [one_seed(mixture, arguments.samples, seed) for seed in range(arguments.seeds)]
        results[mixture] = {name: torch.tensor([run[name] for run in runs]) for name in runs[0]}
        for name, thresholds in results[mixture].items():
            mean, sd = float(thresholds.mean()), float(thresholds.std())
            t = expected(mixture)[name]
            z = (mean - t) / (sd / math.sqrt(len(runs)))
            worst = max(risks(*mixture[:2], mean))
            print(
                f"{mixture[0]:7g} {mixture[1]:7g} {mixture[2]:5g}  {name:20}  {mean:8.4f} ({sd:.4f})"
                f"  {t:8.4f}  {z:4.1f}  {worst:8.4f}"
            )
    if arguments.figure:
        figure(results, arguments.figure)


if __name__ == "__main__":
    main()
