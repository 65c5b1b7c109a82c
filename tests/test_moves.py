"""How far each softmax moved since the epoch before, recorded on any number of ranks and across interruptions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import oracles_scores
import pytest
import ranks
import torch
import users
from lightning.pytorch.callbacks import ModelCheckpoint
from test_recorder import through_a_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from users import Data

from lightning_fairprune import DataPruning, scores
from lightning_fairprune._observe.recorder import EpochRecorder
from lightning_fairprune.scoring import score_pass

N, C, EPOCHS = 23, 6, 4
# float16 keeps 11 bits of ln p, which is at most 18.4 in size.
CLOSE = {"rtol": 2e-3, "atol": 5e-4}


def logits() -> Tensor:
    return 3 * torch.randn(EPOCHS, N, C, generator=torch.Generator().manual_seed(2))


def expected(z: Tensor) -> Tensor:
    """The moves [E, N] by a loop; 0 in the first epoch."""
    p = [[oracles_scores.softmax(row) for row in epoch] for epoch in z.tolist()]
    found = [[0.0] * z.shape[1]]
    for before, after in itertools.pairwise(p):
        found.append([*map(oracles_scores.move, before, after)])
    return torch.tensor(found)


def epoch_of(recorder: EpochRecorder, z: Tensor, samples: Tensor, batch: int = 5) -> None:
    for part in samples.split(batch):
        recorder.update(part, z[part], part % C)


def moves_of(recorder: EpochRecorder) -> Tensor:
    return recorder.dynamics().signal("move")


@pytest.mark.parametrize("batch", [1, 5, N])
def test_moves_equal_the_loop(batch: int) -> None:
    recorder, z = EpochRecorder(N, ("move",)), logits()
    for epoch in range(EPOCHS):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(epoch))
        epoch_of(recorder, z[epoch], order, batch)
        recorder.finish_epoch(epoch)
    torch.testing.assert_close(moves_of(recorder), expected(z), **CLOSE)


def test_small_moves_keep_their_digits() -> None:
    """A sample that is sure moves by a fraction of what rounding its softmax to float16 would cost."""
    sure = torch.tensor([[[10.0, 0.0]], [[10.1, 0.0]], [[10.3, 0.0]]])
    recorder = EpochRecorder(1, ("move",))
    for epoch, z in enumerate(sure):
        recorder.update(torch.tensor([0]), z, torch.tensor([0]))
        recorder.finish_epoch(epoch)
    exact = expected(sure)
    assert exact.max() < 2e-5
    torch.testing.assert_close(moves_of(recorder), exact, rtol=0.05, atol=0)


def test_a_move_needs_the_epoch_before() -> None:
    recorder, z = EpochRecorder(N, ("move",)), logits()
    seen = torch.ones(EPOCHS, N, dtype=torch.bool)
    seen[1, ::3] = seen[2, ::5] = False
    for epoch in range(EPOCHS):
        epoch_of(recorder, z[epoch], seen[epoch].nonzero().flatten())
        recorder.finish_epoch(epoch)
    found, exact = moves_of(recorder), expected(z)
    both = seen[1:] & seen[:-1]
    torch.testing.assert_close(found[1:][both], exact[1:][both], **CLOSE)
    assert bool((found[1:][seen[1:] & ~both] == 0).all())
    values = exact.masked_fill(~seen, torch.nan).T.tolist()
    rows = [[None if v != v else v for v in row] for row in values]
    oracle = torch.tensor([oracles_scores.tdds(row, 3, 0.9) for row in rows])
    got = scores.tdds(recorder.dynamics(), window=3)
    torch.testing.assert_close(got, oracle, equal_nan=True, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("interrupt", [None, "inside", "between"])
def test_ranks_and_interruptions_change_nothing(num_ranks: int, interrupt: str | None) -> None:
    z = logits()

    def run(rank: int) -> Callable[..., Tensor]:
        def on_rank(add: Any, _: Any) -> Tensor:
            recorder = EpochRecorder(N, ("move",))

            def again() -> EpochRecorder:
                state = through_a_file(recorder.state_dict(add))
                other = EpochRecorder(N, ("move",))
                other.load_state_dict(state)
                return other

            for epoch in range(EPOCHS):
                order = torch.randperm(N, generator=torch.Generator().manual_seed(epoch))
                own = order[rank::num_ranks]
                epoch_of(recorder, z[epoch], own[:4])
                recorder = again() if interrupt == "inside" else recorder
                epoch_of(recorder, z[epoch], own[4:])
                recorder.finish_epoch(epoch, add)
                recorder = again() if interrupt == "between" else recorder
            return moves_of(recorder)

        return on_rank

    found = ranks.together([run(rank) for rank in range(num_ranks)])
    for moves in found:
        assert torch.equal(moves, found[0])
        torch.testing.assert_close(moves, expected(z), **CLOSE)


def test_it_takes_4_bytes_a_class_and_no_other_score_takes_them() -> None:
    plain, recorder = EpochRecorder(N, ("loss",)), EpochRecorder(N, ("move",))
    for one in (plain, recorder):
        epoch_of(one, logits()[0], torch.arange(N))
        one.finish_epoch(0)
    assert recorder.device_bytes == plain.device_bytes + 4 * N * C
    recorder.release()
    assert recorder.device_bytes == 0
    assert plain.state_dict()["moves"] == {}


def test_samples_with_many_predictions_are_refused() -> None:
    recorder = EpochRecorder(2, ("move",))
    with pytest.raises(
        ValueError, match=r"needs one prediction for each sample, got .* \[2, 3, 4\]"
    ):
        recorder.update(torch.arange(2), torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64))


def test_no_memory_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    recorder = EpochRecorder(N, ("move",))
    recorder.update(torch.arange(2), torch.zeros(2, C), torch.arange(2))
    monkeypatch.setattr(torch, "full", full)
    with pytest.raises(
        RuntimeError, match="keeps the softmax of 23 samples in two epochs, 0 MiB on"
    ):
        recorder.finish_epoch(0)


def test_recording_reads_no_value_of_the_device() -> None:
    recorder = EpochRecorder(1000, ("move",), device="meta")
    batch = torch.empty(128, dtype=torch.int64, device="meta")
    for _ in range(40):
        recorder.update(batch, torch.empty(128, 10, device="meta"), batch)


def tdds(seen: Any) -> Tensor:
    return scores.tdds(seen, window=3)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used")
def test_a_fit_that_prunes_by_it_and_one_that_is_resumed(tmp_path: Path) -> None:
    def run(resume: Path | None = None) -> DataPruning:
        pl.seed_everything(3, verbose=False)
        prune = DataPruning(0.5, warmup_epochs=4, score=tdds, keep="hard", quota=None)
        save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, monitor=None)
        callbacks = [prune] if resume else [prune, save]
        options = {"max_epochs": 6, "enable_checkpointing": not resume}
        trainer = users.trainer(callbacks=callbacks, **options)
        trainer.fit(users.Model(), Data(shuffle=False), ckpt_path=resume)
        return prune

    whole = run()
    assert list(whole.dynamics.signals) == ["move"]
    for path in sorted(tmp_path.glob("*.ckpt"))[:3]:
        again = run(path)
        assert torch.equal(again.dynamics.signal("move"), whole.dynamics.signal("move"))
        assert torch.equal(again.selection.indices, whole.selection.indices)


def test_a_pass_over_query_models(tmp_path: Path) -> None:
    model, x = nn.Linear(5, C), torch.randn(N, 5)
    data = TensorDataset(x, torch.arange(N) % C)
    files, outputs = [], []
    for epoch in range(EPOCHS):
        nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(epoch))
        files.append(tmp_path / f"{epoch}.pt")
        torch.save(model.state_dict(), files[-1])
        outputs.append(model(x).detach())
    oracle = [oracles_scores.tdds(row, 3, 0.9) for row in expected(torch.stack(outputs)).T.tolist()]
    for resume in (None, tmp_path / "pass"):
        for _ in range(1 if resume is None else 2):  # the second finds all done
            found = score_pass(
                model,
                DataLoader(data, batch_size=4),
                tdds,
                checkpoints=files,
                resume=resume,
                progress=False,
            )
            torch.testing.assert_close(found, torch.tensor(oracle), rtol=1e-2, atol=1e-3)
