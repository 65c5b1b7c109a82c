"""What `frontier.py` compares: trainings of one network on the same number of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, WeightedRandomSampler

from lightning_fairprune import quotas, scores
from lightning_fairprune.experiments.data import CIFAR10

BATCH_SIZE = 256
# Images seen by every training: seven epochs of CIFAR-10, twenty of the long-tailed one.
SAMPLES = {"balanced": 343_040, "longtail": 245_760}
WARMUP = {"balanced": 3, "longtail": 7}  # epochs of a fit with DataPruning
IMBALANCE = 100


@dataclass(frozen=True)
class Setting:
    """One training.

    Args:
        label: what table and figure call it.
        prune: arguments of DataPruning other than seed and warm-up; None for none.
        sampler: "balanced" draws all classes of all data equally often, with replacement.
        make: builds what the rule of the quotas needs besides recalls: a callback that is also the rule.
    """

    label: str
    prune: Mapping[str, Any] | None = None
    sampler: str | None = None
    make: Callable[[], Any] | None = None


def pruned(density: float, **options: Any) -> dict[str, Any]:
    return {"density": density, **options}


class Phased:
    """One rule in the first calls, another one afterwards."""

    def __init__(self, first: Any, then: Any, calls: int) -> None:
        self.first, self.then, self.calls, self.done = first, then, calls, 0

    def reset(self) -> None:
        self.done = 0

    def __call__(self, sizes: Tensor, recall: Tensor, budget: int) -> Tensor:
        self.done += 1
        rule = self.first if self.done <= self.calls else self.then
        if rule is quotas.proportional:
            return quotas.proportional(sizes, budget)
        quota: Tensor = rule(sizes, recall, budget)
        return quota


class _Watching(L.Callback):
    """Keeps the logits of the last validations, and is a rule that reads them."""

    window = 3

    def __init__(self) -> None:
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []
        self.seen: list[Tensor] = []
        self._hook: Any = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._logits, self._labels = [], []
        network: Any = pl_module.network
        self._hook = network.register_forward_hook(
            lambda module, args, output: self._logits.append(output.detach().float().cpu())
        )

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._labels.append(batch[1].cpu())

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._hook.remove()
        self.seen.append(self.read(torch.cat(self._logits), torch.cat(self._labels)))
        del self.seen[: -self.window]

    def read(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns what is averaged over the window, [K]."""
        raise NotImplementedError

    def __call__(self, sizes: Tensor, recall: Tensor, budget: int) -> Tensor:
        return quotas.drop(sizes, torch.stack(self.seen).mean(0).clamp(0, 1), budget)


class AtBestOffsets(_Watching):
    """DRoP by the recalls at the offsets that raise the worst class most: training pays for the rest."""

    def read(self, logits: Tensor, labels: Tensor) -> Tensor:
        return recall_of(logits + simple_offsets(logits, labels, 0.02), labels)


class Confused(_Watching):
    """DRoP by errors that count for both classes: half for the true one, half for the predicted one."""

    def read(self, logits: Tensor, labels: Tensor) -> Tensor:
        k = logits.shape[1]
        table = torch.bincount(labels * k + logits.argmax(1), minlength=k * k).view(k, k).double()
        wrong = table - table.diag().diag()
        return 1 - (wrong.sum(1) + wrong.sum(0)) / 2 / table.sum(1)


def recall_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the recall of each class, float64 [K]."""
    k = logits.shape[1]
    support = torch.bincount(labels, minlength=k).double()
    return torch.bincount(labels[logits.argmax(1) == labels], minlength=k).double() / support


def simple_offsets(logits: Tensor, labels: Tensor, loss: float, steps: int = 200) -> Tensor:
    """Returns offsets by small steps towards equal recalls, the best that cost at most `loss` of average recall."""
    offset = torch.zeros(logits.shape[1])
    recall = recall_of(logits, labels)
    most, best, worst = float(recall.mean()) - loss, offset, float(recall.min())
    spread = float(logits.std())
    for step in range(steps):
        rate = 0.3 * spread * (1 - step / steps)
        offset = offset + rate * (recall.mean() - recall).float()
        recall = recall_of(logits + offset, labels)
        if float(recall.mean()) >= most and float(recall.min()) > worst:
            best, worst = offset, float(recall.min())
    return best - best.mean()


FIXED = {
    "shrinkage": 10.0
}  # pseudo-samples, the default before recalls had an estimate of their own noise
SETTINGS: dict[str, Setting] = {
    "all": Setting("all data"),
    "sampler": Setting("all data, class-balanced sampler", sampler="balanced"),
    "random": Setting("random .3", pruned(0.3, quota=quotas.proportional)),
    "random5": Setting("random .5", pruned(0.5, quota=quotas.proportional)),
    "drop_fixed": Setting("DRoP .3, shrinkage=10", pruned(0.3, **FIXED)),
    "drop5_fixed": Setting("DRoP .5, shrinkage=10", pruned(0.5, **FIXED)),
    "drop": Setting("DRoP .3", pruned(0.3)),
    "drop5": Setting("DRoP .5", pruned(0.5)),
    "drop5_repeat5": Setting("DRoP .5, repeat=5", pruned(0.5, repeat=5)),
    "drop5_repeat10": Setting("DRoP .5, repeat=10", pruned(0.5, repeat=10)),
    "balanced5_repeat25": Setting(
        "balanced .5, repeat=25", pruned(0.5, quota=quotas.balanced, repeat=25)
    ),
    "code5_repeat25": Setting(
        "DRoP's code form .5, repeat=25", pruned(0.5, quota=quotas.drop_reference, repeat=25)
    ),
    "minimax": Setting("Minimax .3", pruned(0.3, quota=quotas.Minimax())),
    "minimax_free": Setting(
        "Minimax .3, no leak, no bound",
        pruned(0.3, quota=quotas.Minimax(leak=0.0, worst=0.01), **FIXED),
    ),
    "minimax5_free_repeat25": Setting(
        "Minimax .5, no leak, no bound, repeat=25",
        pruned(0.5, quota=quotas.Minimax(leak=0.0, worst=0.001), repeat=25),
    ),
    # Candidates for a rule that is ahead of all data with offsets.
    "drop_then_random": Setting(
        "DRoP, the last third proportional",
        pruned(0.3, quota=Phased(quotas.drop, quotas.proportional, 4), **FIXED),
    ),
    "random_then_drop": Setting(
        "proportional, the last third DRoP",
        pruned(0.3, quota=Phased(quotas.proportional, quotas.drop, 4), **FIXED),
    ),
    "at_best_offsets": Setting(
        "DRoP by recalls at best offsets", pruned(0.3, **FIXED), make=AtBestOffsets
    ),
    "confused": Setting("DRoP by confused pairs", pruned(0.3, **FIXED), make=Confused),
    "drop_stratified": Setting(
        "DRoP, EL2N stratified",
        pruned(0.3, score=scores.el2n, keep="stratified", resample_every=None, **FIXED),
    ),
    "drop_aum_hard": Setting(
        "DRoP, lowest margins", pruned(0.3, score=scores.aum, keep="hard", **FIXED)
    ),
}


class Data(CIFAR10):
    """CIFAR-10, of which a training can draw all classes equally often."""

    def __init__(
        self, root: str, cache: str | None, long_tailed: bool, sampler: str | None
    ) -> None:
        super().__init__(
            root=root,
            batch_size=BATCH_SIZE,
            cache=cache,
            imbalance=IMBALANCE if long_tailed else None,
        )
        self.sampler = sampler

    def train_dataloader(self) -> DataLoader[Any]:
        labels = self.train_set.targets
        options = self._options(self.train_set) | {"drop_last": True}
        if self.sampler is None:
            return DataLoader(self.train_set, shuffle=True, **options)
        weights = 1.0 / labels.bincount().double()[labels]
        sampler = WeightedRandomSampler(weights.tolist(), len(labels))
        return DataLoader(self.train_set, sampler=sampler, **options)
