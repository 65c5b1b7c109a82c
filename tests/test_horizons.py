"""A resumed fit plans the learning rates of the first one, and each phase has its own plan."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ranks
import users
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
)
from torch.optim import lr_scheduler as schedules
from torch.utils.data import DataLoader

import lightning_fairprune as lfp

pytestmark = [
    # The resumed fits save nothing, so they have no ModelCheckpoint.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used"),
    pytest.mark.filterwarnings("ignore:a learning-rate schedule steps after every batch"),
]
EPOCHS, FULL, SHORT = 4, 11, 5  # two warm-up epochs of 11 batches, two pruned ones of 5


def of_loop(module: Any) -> int:
    module.trainer.fit_loop.setup_data()
    return EPOCHS * int(module.trainer.num_training_batches)


def planned_and_loaders(module: Any) -> int:
    """Looks at the loaders as well, which are those of full epochs whenever optimisers are configured."""
    lengths = [of_loop(module), of_trainers_loader(module), *loaders_by_name(module)]
    assert set(lengths) == {EPOCHS * FULL}
    return lfp.planned_stepping_batches(module.trainer)


def loaders_by_name(module: Any) -> list[int]:
    return [HORIZONS[name](module) for name in ("estimated", "datamodules_loader")]


def of_trainers_loader(module: Any) -> int:
    module.trainer.fit_loop.setup_data()
    return EPOCHS * len(module.trainer.train_dataloader)


HORIZONS: dict[str, Callable[[Any], int]] = {
    "planned": lambda module: lfp.planned_stepping_batches(module.trainer),
    "estimated": lambda module: int(module.trainer.estimated_stepping_batches),
    "num_training_batches": of_loop,
    "trainers_loader": of_trainers_loader,
    "datamodules_loader": lambda m: EPOCHS * len(m.trainer.datamodule.train_dataloader()),
    "both": planned_and_loaders,
    "own_loader": lambda module: EPOCHS * len(module.train_dataloader()),
}


def linear(optimizer: Any, steps: int) -> Any:
    """Linear warm-up, then decay, as in transformers."""
    first = max(1, steps // 10)
    return schedules.LambdaLR(
        optimizer,
        lambda step: step / first if step < first else (steps - step) / max(1, steps - first),
    )


class Cosine:
    """As in timm: the rate is a function of the step, which the module passes on."""

    def __init__(self, optimizer: Any, steps: int) -> None:
        self.optimizer, self.steps, self.last = optimizer, steps, 0
        self.base = [group["lr"] for group in optimizer.param_groups]

    def step(self, step: int | None = None) -> None:
        self.last = self.last + 1 if step is None else step
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base / 2 * (1 + math.cos(math.pi * min(self.last / self.steps, 1)))

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last = state["last"]


SCHEDULES: dict[str, Callable[[Any, int], Any]] = {
    "one_cycle": lambda o, steps: schedules.OneCycleLR(o, 0.2, total_steps=steps),
    "cosine": lambda o, steps: schedules.CosineAnnealingLR(o, T_max=steps),
    "lambda": linear,
    "timm": Cosine,
}


class Scheduled(users.Model):
    def __init__(self, schedule: str, horizon: str) -> None:
        super().__init__()
        self.schedule, self.horizon = schedule, horizon
        self.horizons: list[int] = []
        self.rates: dict[int, float] = {}

    def configure_optimizers(self) -> Any:
        self.horizons.append(HORIZONS[self.horizon](self))
        optimizer = super().configure_optimizers()
        schedule = SCHEDULES[self.schedule](optimizer, self.horizons[-1])
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.rates[self.trainer.global_step] = self.optimizers().param_groups[0]["lr"]


class OwnData(Scheduled):
    """A module that brings its own loaders."""

    def setup(self, stage: str) -> None:
        self.data = [users.Data()]
        self.data[0].setup(stage)

    def train_dataloader(self) -> Any:
        return self.data[0].train_dataloader()

    def val_dataloader(self) -> Any:
        return self.data[0].val_dataloader()


def run(
    schedule: str,
    horizon: str,
    *,
    form: str = "datamodule",
    prune: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    batch_size: int = 10,
    folder: str | None = None,
    every_step: bool = False,
    resume: str | None = None,
    others: list[Any] | None = None,
) -> dict[str, Any]:
    users.pl.seed_everything(1, verbose=False)
    callback = lfp.DataPruning(0.4, 2, quota=lfp.quotas.Minimax(), **(prune or {}))
    callbacks: list[Any] = [callback, *(others or [])]
    if folder is not None:
        when = {"every_n_train_steps": 1} if every_step else {"save_on_train_epoch_end": True}
        name = "{epoch}-{step}"
        callbacks.append(ModelCheckpoint(folder, filename=name, save_top_k=-1, **when))
    model = (OwnData if form == "module" else Scheduled)(schedule, horizon)
    data = users.Data(batch_size=batch_size)
    given: dict[str, Any] = {"datamodule": data}
    if form == "module":
        given = {}
    elif form == "wrapper":
        given = {"datamodule": lfp.FairPruneDataModule(data)}
    elif form == "given":
        data.setup("fit")
        given = {
            "train_dataloaders": DataLoader(data.train, batch_size=batch_size, shuffle=True),
            "val_dataloaders": data.val_dataloader(),
        }
    options = {"enable_checkpointing": folder is not None} | (trainer or {})
    fit = users.trainer(callbacks=callbacks, **({"max_epochs": EPOCHS} | options))
    fit.fit(model, ckpt_path=resume, weights_only=True if resume else None, **given)
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return {
        "horizons": model.horizons,
        "rates": [[step, rate] for step, rate in model.rates.items()],
        "weights": digest.hexdigest(),
        "steps": fit.global_step,
    }


def saved(folder: Path) -> list[str]:
    return [str(p) for p in sorted(folder.glob("*.ckpt"), key=step)]


def step(path: Path) -> int:
    return int(path.stem.split("step=")[1].split("-")[0])


def check(full: dict[str, Any], resumed: dict[str, Any], path: str) -> None:
    assert resumed["horizons"][-1:] == full["horizons"][-1:], path
    assert resumed["rates"] == full["rates"][len(full["rates"]) - len(resumed["rates"]) :], path
    assert resumed["weights"] == full["weights"], path


FORMS = {
    "planned": "datamodule",
    "estimated": "wrapper",
    "num_training_batches": "given",
    "trainers_loader": "datamodule",
    "datamodules_loader": "wrapper",
    "both": "wrapper",
    "own_loader": "module",
}


@pytest.mark.parametrize("horizon", HORIZONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_resumed_at_every_epoch(schedule: str, horizon: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"form": FORMS[horizon]}
    full = run(schedule, horizon, **settings, folder=str(tmp_path))
    assert full["horizons"] == [32 if horizon in ("planned", "both") else EPOCHS * FULL]
    checkpoints = saved(tmp_path)
    assert len(checkpoints) == EPOCHS
    for path in checkpoints:
        check(full, run(schedule, horizon, **settings, resume=path), path)


@pytest.mark.parametrize("form", ["datamodule", "wrapper", "given", "module"])
def test_resumed_inside_an_epoch(form: str, tmp_path: Path) -> None:
    trainer = {"accumulate_grad_batches": 2, "max_steps": 16}
    settings: dict[str, Any] = {"form": form, "trainer": trainer}
    full = run("lambda", "estimated", **settings, folder=str(tmp_path), every_step=True)
    assert full["horizons"] == [16]
    checkpoints = saved(tmp_path)
    assert len(checkpoints) == 16
    for path in checkpoints:
        if step(Path(path)) in (3, 7, 10, 13):
            check(full, run("lambda", "estimated", **settings, resume=path), path)


def test_on_two_ranks(tmp_path: Path) -> None:
    base: dict[str, Any] = {
        "schedule": "lambda",
        "horizon": "estimated",
        "batch_size": 5,
        "trainer": {"devices": 2, "strategy": "ddp"},
    }
    fits = [base | {"form": form, "folder": str(tmp_path / form)} for form in ("given", "wrapper")]
    restart = {
        "horizon": "both",
        "prune": {"after": "restart"},
        "folder": str(tmp_path / "restart"),
    }
    fits.append(fits[1] | restart)
    full = ranks.launch(__file__, fits, tmp_path)
    again = [
        (i, {k: v for k, v in fit.items() if k != "folder"} | {"resume": path})
        for i, fit in enumerate(fits)
        for path in saved(Path(fit["folder"]))
    ]
    assert len(again) == EPOCHS * len(fits)
    found = ranks.launch(__file__, [settings for _, settings in again], tmp_path)
    for (i, settings), records in zip(again, found, strict=True):
        for rank in range(ranks.RANKS):
            check(full[i][rank], records[rank], settings["resume"])


# ---------------------------------------------------------------------------------------- restart


TRAINERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulate": {"accumulate_grad_batches": 3},
    "max_steps": {"max_steps": 29},
    "steps_alone": {"max_steps": 29, "max_epochs": -1},
}
PHASES = {"plain": [22, 10], "accumulate": [8, 4], "max_steps": [22, 7], "steps_alone": [22, 7]}


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_phase_of_a_restart_has_its_own_plan(
    schedule: str, trainer: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"prune": {"after": "restart"}, "trainer": TRAINERS[trainer]}
    full = run(schedule, "planned", **settings, folder=str(tmp_path), every_step=True)
    warm_up, final = PHASES[trainer]
    assert full["horizons"] == [warm_up, final]
    assert full["steps"] == warm_up + final
    rates = [rate for _, rate in full["rates"]]
    for first, count in ((0, warm_up), (warm_up, final)):  # the rates of a plain fit of the phase
        model = users.Model()
        optimizer = model.configure_optimizers()
        plain = SCHEDULES[schedule](optimizer, count)
        for i in range(count):
            expected = optimizer.param_groups[0]["lr"]
            assert rates[first + i] == pytest.approx(expected, abs=1e-12)
            optimizer.step()
            if i < count - 1:
                plain.step()
    for path in saved(tmp_path):
        at = step(Path(path))
        if at not in (warm_up - 1, warm_up + 2):
            continue
        resumed = run(schedule, "planned", **settings, resume=path)
        # Until the restart the schedule is that of the warm-up, also in a fit resumed right before it.
        assert resumed["horizons"] == ([warm_up, final] if at <= warm_up else [final])
        check(full, resumed, path)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_restart_resumed_at_every_epoch(schedule: str, tmp_path: Path) -> None:
    prune = {"after": "restart"}
    full = run(schedule, "planned", prune=prune, folder=str(tmp_path))
    for path, horizons in zip(saved(tmp_path), ([22, 10], [22, 10], [10], [10]), strict=True):
        resumed = run(schedule, "planned", prune=prune, resume=path)
        assert resumed["horizons"] == horizons
        check(full, resumed, path)


@pytest.mark.parametrize("horizon", ["both", "trainers_loader", "estimated"])
def test_a_restart_resumed_inside_an_epoch(horizon: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"prune": {"after": "restart"}, "form": "wrapper"}
    full = run("lambda", horizon, **settings, folder=str(tmp_path), every_step=True)
    for path in saved(tmp_path):
        if step(Path(path)) in (5, 15, 23, 30):
            check(full, run("lambda", horizon, **settings, resume=path), path)


@pytest.mark.filterwarnings("ignore:no validation has finished in 2 epochs")
def test_a_warm_up_that_lasts_longer_leaves_the_final_model_fewer_epochs() -> None:
    late = {"check_val_every_n_epoch": None, "val_check_interval": 25, "max_epochs": 6}
    found = run("cosine", "planned", prune={"after": "restart"}, trainer=late)
    assert found["horizons"] == [2 * FULL, 3 * SHORT]
    assert found["steps"] == 3 * FULL + 3 * SHORT


def test_accumulation_that_changes_with_the_restart() -> None:
    accumulates = GradientAccumulationScheduler({0: 1, 2: 4})
    found = run("one_cycle", "planned", prune={"after": "restart"}, others=[accumulates])
    assert found["horizons"] == [2 * FULL, 2 * 2]
    assert found["steps"] == 2 * FULL + 2 * 2


@pytest.mark.parametrize("horizon", ["both", "num_training_batches", "estimated"])
@pytest.mark.parametrize("after", ["continue", "restart"])
def test_with_reloads_of_the_users(horizon: str, after: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "form": "wrapper",
        "prune": {"after": after},
        "trainer": {"reload_dataloaders_every_n_epochs": 1},
    }
    full = run("lambda", horizon, **settings, folder=str(tmp_path))
    for path in saved(tmp_path):
        check(full, run("lambda", horizon, **settings, resume=path), path)


@pytest.mark.filterwarnings("ignore:.*_average_model", "ignore:.*[Cc]heckpoint directory")
@pytest.mark.parametrize("after", ["continue", "restart"])
def test_an_average_of_weights_resumes_with_its_plan(after: str, tmp_path: Path) -> None:
    def average() -> dict[str, Any]:
        return {"prune": {"after": after}, "others": [EMAWeightAveraging(decay=0.9)]}

    full = run("cosine", "planned", **average(), folder=str(tmp_path))
    for path in saved(tmp_path)[:-1]:  # the last one is of a fit that has ended
        check(full, run("cosine", "planned", **average(), resume=path), path)


@pytest.mark.parametrize("frequency", [SHORT, SHORT + 1])
def test_a_schedule_that_never_steps_in_a_pruned_epoch_is_told(frequency: int) -> None:
    class Seldom(Scheduled):
        def configure_optimizers(self) -> Any:
            optimizers, (config,) = super().configure_optimizers()
            return optimizers, [config | {"frequency": frequency}]

    fit = users.trainer(callbacks=[lfp.DataPruning(0.4, 2)])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit.fit(Seldom("lambda", "planned"), datamodule=users.Data())
    found = [w for w in told if "a pruned epoch has 5" in str(w.message)]
    assert len(found) == (frequency > SHORT)


if __name__ == "__main__":
    ranks.main(run)
