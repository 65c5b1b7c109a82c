"""Fits whose epochs draw samples of small classes several times."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import users
from test_midepoch import By
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, WeightedRandomSampler

import lightning_fairprune as lfp
from lightning_fairprune import figures, quotas
from lightning_fairprune._loading.kept import kept_in, spread, state_of
from lightning_fairprune._loading.sampler import EpochSampler
from lightning_fairprune.cli import main
from lightning_fairprune.selection.decision import Decision

pytestmark = pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`, callbacks used"
)
N = 103
SIZES = torch.bincount(users.Blobs().y)  # long-tailed
KEPT = torch.tensor([1, 1, 1, 4, 7, 7])


def fit(
    *callbacks: Any,
    loader: Any = None,
    resume: Path | None = None,
    trainer: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[lfp.DataPruning, users.Probe]:
    users.pl.seed_everything(1, verbose=False)
    static = {"resample_every": None, "update_every": None}
    options = {"quota": quotas.balanced, "repeat": 4, "density": 0.9} | static | options
    prune, probe = lfp.DataPruning(warmup_epochs=1, **options), users.Probe()
    t = users.trainer(callbacks=[prune, probe, *callbacks], **({"max_epochs": 4} | (trainer or {})))
    if loader is None:
        t.fit(users.Model(), datamodule=users.Data(), ckpt_path=resume)
    else:
        t.fit(users.Model(), loader, DataLoader(users.Blobs(60), 20), ckpt_path=resume)
    return prune, probe


def drawn(probe: users.Probe, epoch: int) -> Tensor:
    """How often an epoch drew each sample."""
    return torch.tensor(probe.samples[epoch]).bincount(minlength=N)


def test_the_decision_passes_repeat_on_to_quotas_and_draws() -> None:
    decision = Decision(1.0, quotas.balanced, repeat=5)
    decision.learn(torch.tensor([0] * 50 + [1] * 4), num_classes=2)
    assert decision.estimate(0).tolist() == [34, 20]
    assert decision.draw().indices.bincount()[50:].tolist() == [5] * 4


def test_an_epoch_draws_what_the_quotas_say() -> None:
    prune, probe = fit()
    quota = quotas.balanced(SIZES, 93, repeat=4)
    assert bool((quota > SIZES).any())
    assert torch.equal(prune.quota, quota)
    for epoch in (1, 2, 3):
        often, y = drawn(probe, epoch), users.Blobs().y
        for k, (n, size) in enumerate(zip(quota.tolist(), SIZES.tolist(), strict=True)):
            mine = sorted(often[y == k].tolist())
            assert mine == sorted([n // size + (j < n % size) for j in range(size)])
    assert torch.equal(often, prune.selection.indices.bincount(minlength=N))
    assert probe.samples[2] != probe.samples[3]
    assert torch.equal(drawn(probe, 2), often)
    record = prune.record
    assert len(record.dropped) == N - record.selection.distinct


def test_the_order_is_one_permutation() -> None:
    """Copies are spread over the epoch, not one round after another."""
    kept = torch.cat([torch.arange(50), torch.tensor([50]).repeat(50)])
    order = list(EpochSampler(51, kept=kept, seed=3))
    assert sorted(order) == kept.tolist()
    first, second = (Counter(half)[50] for half in (order[:50], order[50:]))
    assert 10 < first < 40
    assert first + second == 50


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("num_replicas", [1, 2, 4])
def test_ranks_share_the_positions_of_an_epoch(num_replicas: int, drop_last: bool) -> None:
    kept = torch.arange(20).repeat_interleave(torch.arange(20) % 4)
    kept = kept[: len(kept) // 4 * 4]
    whole = list(EpochSampler(20, kept=kept, seed=1, epoch=2))
    shards = [
        list(
            EpochSampler(
                20,
                kept=kept,
                seed=1,
                epoch=2,
                num_replicas=num_replicas,
                rank=rank,
                drop_last=drop_last,
            )
        )
        for rank in range(num_replicas)
    ]
    assert [i for step in zip(*shards, strict=True) for i in step] == whole


def test_weights_count_inside_the_classes() -> None:
    y = users.Blobs().y
    weights = torch.where(torch.arange(N) % 2 == 0, 1.0, 0.0)
    sampler = WeightedRandomSampler(weights.tolist(), 20 * N)
    with pytest.warns(UserWarning, match="51 of 103 training samples were never observed"):
        _, probe = fit(loader=DataLoader(users.Blobs(), 10, sampler=sampler), density=1.0)
    quota = quotas.balanced(y[::2].bincount(), N, repeat=4)
    often = drawn(probe, 3)
    assert int(often.sum()) == 20 * N
    assert int(often[1::2].sum()) == 0
    for k in range(4):
        assert abs(int(often[y == k].sum()) / 20 - int(quota[k])) < 5


class Own(Sampler[int]):
    """Every sample once, in an order of its own."""

    def __iter__(self) -> Any:
        return iter([(7 * i) % N for i in range(N)])

    def __len__(self) -> int:
        return N


@pytest.mark.parametrize("density", [0.9, 1.0])
def test_an_own_order_draws_copies_at_even_distances(density: float) -> None:
    with pytest.warns(
        UserWarning, match="each of them is drawn as often an epoch as its quota says"
    ):
        prune, probe = fit(loader=DataLoader(users.Blobs(), 10, sampler=Own()), density=density)
    kept = prune.selection.indices
    assert torch.equal(drawn(probe, 3), kept.bincount(minlength=N))
    first = list(dict.fromkeys(probe.samples[3]))
    assert len(first) == prune.selection.distinct
    often = kept.bincount(minlength=N)
    once = [i for i in probe.samples[3] if often[i] == 1]
    assert once == [i for i in Own() if often[i] == 1]


def test_copies_are_spread() -> None:
    order = torch.tensor([4, 7, 1])
    # 4 at 0; 7 at 1 and 2.5; 1 at 2, 0 and 1.
    assert spread(order, KEPT).tolist() == [4, 1, 7, 1, 1, 7]
    assert torch.equal(spread(order, torch.tensor([1, 4, 7])), order)


@pytest.mark.parametrize(
    "kept", [KEPT, torch.tensor([0, 2, 5]), torch.tensor([], dtype=torch.int64)]
)
def test_the_state_of_kept_samples(kept: Tensor) -> None:
    state = state_of(kept)
    assert torch.equal(kept_in(state), kept)
    assert ("copies" in state) == (len(kept.unique()) < len(kept))
    assert kept_in(state_of(None)) is None


# ---------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("wrapped", [False, True])
def test_resumed_at_and_inside_an_epoch(wrapped: bool, tmp_path: Path) -> None:
    paths = {(1, 3): tmp_path / "inside.ckpt", (2, 9): tmp_path / "last.ckpt"}

    def run(
        *callbacks: Any, resume: Path | None = None
    ) -> tuple[lfp.DataPruning, users.Probe, Any]:
        users.pl.seed_everything(1, verbose=False)
        prune = lfp.DataPruning(0.9, 1, quota=quotas.balanced, repeat=4)
        probe, model, data = users.Probe(), users.Model(), users.Data()
        t = users.trainer(callbacks=[prune, probe, *callbacks], max_epochs=4)
        t.fit(
            model, datamodule=lfp.FairPruneDataModule(data) if wrapped else data, ckpt_path=resume
        )
        return prune, probe, model

    prune, full, model = run(*(By(path, *at) for at, path in paths.items()))
    assert prune.selection.distinct < len(prune.selection)
    assert full.batches[1] == 10
    for (epoch, batch), path in paths.items():  # each epoch draws anew
        again, probe, resumed = run(resume=path)
        assert (
            full.samples[epoch][: 10 * (batch + 1)] + probe.samples.get(epoch, [])
            == full.samples[epoch]
        )
        assert probe.samples[3] == full.samples[3]
        assert torch.equal(again.selection.indices, prune.selection.indices)
        assert again.selection.repeat == 4
        for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(one, other)


def test_another_repeat_is_refused(tmp_path: Path) -> None:
    for before, now in ((4, 2), (1, 2)):
        path = tmp_path / f"{before}.ckpt"
        fit(By(path, 1, 3), repeat=before)
        with pytest.raises(ValueError, match=f"`repeat`={now} where the checkpoint has {before}"):
            fit(resume=path, repeat=now)
    state = torch.load(path, weights_only=True)
    (own,) = (value for key, value in state["callbacks"].items() if "DataPruning" in key)
    del own["settings"]["repeat"], own["selection"]["repeat"]  # as of an older release
    torch.save(state, path)
    fit(resume=path, repeat=1)
    with pytest.raises(ValueError, match="`repeat`=2 where the checkpoint has 1"):
        fit(resume=path, repeat=2)


# ------------------------------------------------------------------------------------- two ranks


def on_a_rank(density: float) -> dict[str, Any]:
    prune, probe = fit(density=density, trainer={"devices": 2, "strategy": "ddp", "max_epochs": 3})
    return {"samples": probe.samples, "kept": prune.selection.indices.tolist()}


def test_two_ranks_share_the_copies(tmp_path: Path) -> None:
    for first, second in ranks.launch(__file__, [{"density": 0.874}, {"density": 1.0}], tmp_path):
        assert first["kept"] == second["kept"]
        assert max(Counter(first["kept"]).values()) > 1
        both = Counter(first["samples"]["2"] + second["samples"]["2"])
        odd = len(first["kept"]) % 2
        assert len(first["samples"]["2"]) == len(second["samples"]["2"])
        assert sum((both - Counter(first["kept"])).values()) == odd
        assert not Counter(first["kept"]) - both


# -------------------------------------------------------------------------- figures and the report


def test_figures_and_report_of_quotas_beyond_the_size(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    quota, sizes = torch.tensor([2, 9]), torch.tensor([4, 3])
    axis = figures.kept_by_class(quota, sizes, repeat=3).axes[0]
    bars = [[bar.get_width() for bar in group] for group in axis.containers]
    assert bars == [[2, 3], [2, 0], [0, 6]]  # kept, dropped, drawn again
    assert axis.get_xlim()[1] > 9
    with pytest.raises(ValueError, match="between 0 and 2 times the size of the class, got 9 of 3"):
        figures.kept_by_class(quota, sizes, repeat=2)
    share, recall = quota / sizes, torch.tensor([0.9, 0.5])
    figure = figures.density_against_recall(share, recall, repeat=3)
    assert figure.axes[0].get_ylim()[1] > 3
    logger = users.pl.loggers.CSVLogger(tmp_path, "run", "0")
    fit(lfp.RecallMonitor(), trainer={"logger": logger, "max_epochs": 3}, update_every=1)
    record = lfp.PruningRecord.load(tmp_path / "run" / "0")
    assert (record.selection.repeat, record.settings["repeat"]) == (4, 4)
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert "Samples are drawn up to 4 times an epoch." in page
    assert "draws several times counts as often" in page


# -------------------------------------------------------------------------------- a rule of a user


def own(sizes: Tensor, budget: int) -> Tensor:
    return quotas.proportional(sizes, budget)


def any_options(sizes: Tensor, budget: int, **options: Any) -> Tensor:
    assert options == {"repeat": 4}
    return quotas.balanced(sizes, budget, **options)


def test_a_rule_that_takes_no_repeat() -> None:
    assert int(fit(quota=own, repeat=1, trainer={"max_epochs": 2})[0].quota.sum()) == 93
    with pytest.raises(
        ValueError, match=r"`repeat`=4 needs a `quota` that takes `repeat`, .* own does not"
    ):
        fit(quota=own)
    assert bool((fit(quota=any_options, trainer={"max_epochs": 2})[0].quota > SIZES).any())
    assert fit(quota=None, trainer={"max_epochs": 2})[0].selection.distinct == 93


if __name__ == "__main__":
    ranks.main(on_a_rank)
