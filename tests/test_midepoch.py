"""A fit that is resumed inside an epoch with other batches trains on each other sample of it once, or says why not."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import scenario
import torch
import users
from lightning.pytorch.callbacks import Callback
from test_swap import launch

import lightning_fairprune as lfp

pytestmark = pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`, callbacks used"
)
N, EPOCHS = 103, 4


class By(Callback):
    """Saves a checkpoint by hand after a batch of an epoch."""

    def __init__(self, path: Path, epoch: int, batch: int) -> None:
        self.path, self.at = path, (epoch, batch)

    def on_train_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, i: int) -> None:
        if (trainer.current_epoch, i) == self.at:
            trainer.save_checkpoint(self.path)


def fit(
    *callbacks: Callback,
    resume: Path | None = None,
    wrapped: bool = False,
    loader: dict[str, Any] | None = None,
    planned: bool = False,
    n: int = N,
    **options: Any,
) -> tuple[lfp.DataPruning, users.Probe, list[str]]:
    """Fits; returns the callback, the samples of each epoch and what was said of resuming."""
    scenario.pl.seed_everything(1, verbose=False)
    loader = {"batch_size": 10} | (loader or {})
    prune = lfp.DataPruning(0.4, 2, score=lfp.scores.el2n, keep="hard", quota=lfp.quotas.drop)
    probe = users.Probe()
    trainer = users.trainer(callbacks=[prune, probe, *callbacks], max_epochs=EPOCHS, **options)
    data: Any = users.Data(n, **loader)
    model = scenario.PlannedModel() if planned else users.Model()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(
            model,
            datamodule=lfp.FairPruneDataModule(data) if wrapped else data,
            ckpt_path=resume,
        )
    return prune, probe, [str(w.message) for w in said if "resumed after" in str(w.message)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("whole")
    at = {
        (1, 4): folder / "warm-up.ckpt",
        (2, 2): folder / "pruned.ckpt",
        (1, 10): folder / "last.ckpt",
    }
    prune, probe, _ = fit(*(By(path, *where) for where, path in at.items()))
    return prune, probe, at


CHANGES: dict[str, dict[str, Any]] = {
    "larger batches": {"loader": {"batch_size": 16}},
    "smaller batches": {"loader": {"batch_size": 3}},
    "accumulation": {"accumulate_grad_batches": 3},
    "larger and planned": {"loader": {"batch_size": 25}, "planned": True},
    "with workers": {"loader": {"batch_size": 7, "workers": 2}},
}


@pytest.mark.parametrize("where", [(1, 4), (2, 2)])
@pytest.mark.parametrize("change", CHANGES)
def test_other_batches_train_on_what_is_left(
    change: str, where: tuple[int, int], whole: Any
) -> None:
    prune, full, paths = whole
    epoch, batch = where
    done = full.samples[epoch][: 10 * (batch + 1)]
    again, probe, said = fit(resume=paths[where], **CHANGES[change])
    assert done + probe.samples[epoch] == full.samples[epoch]
    assert len(said) == 1
    assert f"epoch {epoch} is resumed after {len(done)} of {len(full.samples[epoch])}" in said[0]
    for later in range(epoch + 1, EPOCHS):
        assert set(Counter(probe.samples[later]).values()) == {1}
    if epoch == 1:
        assert again.dynamics.observed.all()
        assert again.dynamics.signals["el2n"].isfinite().all()
    assert len(again.selection.indices) == len(prune.selection.indices)


def test_drop_last_drops_less_than_a_batch(whole: Any) -> None:
    _, full, paths = whole
    _, probe, said = fit(resume=paths[1, 4], loader={"batch_size": 16, "drop_last": True})
    assert probe.samples[1] == full.samples[1][50:98]  # 53 are left
    assert "`batch_size`=16 where the checkpoint has 10, `drop_last`=True" in said[0]


def test_a_limit_ends_the_epoch_where_it_says(whole: Any) -> None:
    _, full, paths = whole
    _, probe, _ = fit(resume=paths[1, 4], limit_train_batches=7)
    assert probe.samples[1] == full.samples[1][50:70]
    with pytest.raises(
        ValueError, match=r"after 50 of 103 samples of epoch 1, and with `limit_train_batches`=3"
    ):
        fit(resume=paths[1, 4], limit_train_batches=3)


@pytest.mark.parametrize("where", [(1, 4), (2, 2)])
def test_another_order_is_refused(where: tuple[int, int], whole: Any) -> None:
    message = r"samples of epoch \d in an order \(shuffle=True\) that is not the order now \(shuffle=False\)"
    with pytest.raises(ValueError, match=message):
        fit(resume=whole[2][where], loader={"shuffle": False})


@pytest.mark.parametrize("size", [5, 20])
def test_a_complete_epoch_stays_complete(size: int, whole: Any) -> None:
    """The Trainer counts the batches of such a checkpoint on, into the next epoch."""
    _, probe, _ = fit(resume=whole[2][1, 10], loader={"batch_size": size})
    assert 1 not in probe.samples
    for epoch in (2, 3):
        assert len(set(probe.samples[epoch])) == len(probe.samples[epoch]) == 41
        assert probe.batches[epoch] == probe.planned[epoch] == -(-41 // size)


def test_batches_without_a_step_are_trained_on_again(tmp_path: Path) -> None:
    """A checkpoint holds no gradients."""
    inside = By(tmp_path / "inside.ckpt", 1, 4)
    prune, full, _ = fit(inside, accumulate_grad_batches=2)
    with pytest.warns(
        UserWarning, match="inside an accumulation, and holds no gradients: 1 batches of epoch 1"
    ):
        again, probe = resumed_accumulating(inside.path)
    assert probe.samples[1] == full.samples[1][40:]
    assert again.selection.indices.equal(prune.selection.indices)
    assert again.record.score.equal(prune.record.score)


def resumed_accumulating(path: Path) -> Any:
    prune = lfp.DataPruning(0.4, 2, score=lfp.scores.el2n, keep="hard", quota=lfp.quotas.drop)
    probe = users.Probe()
    trainer = users.trainer(callbacks=[prune, probe], max_epochs=EPOCHS, accumulate_grad_batches=2)
    trainer.fit(users.Model(), datamodule=users.Data(), ckpt_path=path)
    return prune, probe


def test_resumed_twice_counts_on(whole: Any, tmp_path: Path) -> None:
    _, full, paths = whole
    second = By(tmp_path / "second.ckpt", 1, 4)  # of 7 batches, the last four from sample 50
    _, first, _ = fit(second, resume=paths[1, 4], loader={"batch_size": 16})
    _, probe, said = fit(resume=second.path, loader={"batch_size": 5})
    assert probe.samples[1] == full.samples[1][82:]
    assert "after 82 of 103 samples" in said[0]
    assert first.samples[1] == full.samples[1][50:]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_ranks(before: int, after: int, tmp_path: Path) -> None:
    def settings(ranks: int, **more: Any) -> dict[str, Any]:
        ddp = {"devices": 2, "strategy": "ddp"} if ranks == 2 else {}
        return {"batch_size": 10, "prune": {"quota": "proportional"}, "trainer": ddp} | more

    def run(ranks: int, **more: Any) -> list[dict[str, Any]]:
        if ranks == 1:
            return [scenario.run(**settings(1, **more))]
        return launch({"it": settings(2, **more)}, tmp_path)["it"]

    checkpoint = {"every_n_train_steps": 1, "save_on_train_epoch_end": False}
    full = run(before, checkpoint=checkpoint, folder=str(tmp_path / "saved"))
    step = 8 if before == 2 else 14  # after two and three batches of epoch 1
    (path,) = (tmp_path / "saved").glob(f"*step={step}.ckpt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = run(after, resume=str(path))
    size = 10 * before * (2 if before == 2 else 3)
    done = [i for rank in full for i in of_epoch_1(rank)[: size // before]]
    left = [i for rank in again for i in of_epoch_1(rank)]
    times = Counter(done + left)
    assert set(times) == set(range(N))
    assert sum(times.values()) <= N + 1  # one repeat evens out two ranks


def of_epoch_1(record: dict[str, Any]) -> list[int]:
    """The samples that a rank was given; those of other processes have text for keys."""
    return {int(epoch): samples for epoch, samples in record["samples"].items()}[1]


@pytest.mark.parametrize("at", [(1, 3), (3, 1)], ids=["warm-up", "pruned"])
def test_a_checkpoint_that_counts_batches_alone_resumes_in_the_same_order(
    at: tuple[int, int], tmp_path: Path
) -> None:
    path, (epoch, batch) = tmp_path / "old.ckpt", at
    _, whole, _ = fit(By(path, *at))
    state = torch.load(path, weights_only=True)
    found = next(v for k, v in state["callbacks"].items() if "DataPruning" in k)["source"]
    del found["samples_seen"], found["resumed"]  # written before positions were in samples
    torch.save(state, path)
    _, rest, said = fit(resume=path)
    assert not said
    assert rest.samples == {
        e: seen[10 * (batch + 1) :] if e == epoch else seen
        for e, seen in whole.samples.items()
        if e >= epoch
    }
