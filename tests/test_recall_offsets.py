"""RecallOffsets: offsets of the last validation, as a user would fit them by hand."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import ranks
import torch
import users
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from users import NUM_CLASSES, Blobs, Data, Model

import lightning_fairprune as lfp
from lightning_fairprune import OffsetsRecord, RecallOffsets, offsets
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.history import Evaluation, RecallHistory
from lightning_fairprune.report import report

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
VAL = Blobs(60, seed=1)  # what Data validates on


def logits_of(model: Model) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(VAL.x)
    return found


def counts(pred: Tensor) -> tuple[list[int], list[int]]:
    right = [int((pred == VAL.y)[VAL.y == k].sum()) for k in range(NUM_CLASSES)]
    return right, [int((VAL.y == k).sum()) for k in range(NUM_CLASSES)]


def listed(found: ClassCounts) -> tuple[list[int], list[int]]:
    return found.tp.tolist(), found.support.tolist()


def test_offsets_of_the_last_validation(tmp_path: Path) -> None:
    callback, model = RecallOffsets(0.05), Model()
    trainer = users.trainer(callbacks=[callback], max_epochs=2, default_root_dir=tmp_path)
    trainer.fit(model, Data())
    logits, record = logits_of(model), callback.record
    assert record is not None
    torch.testing.assert_close(record.offsets, offsets.fit(logits, VAL.y, max_average_loss=0.05))
    assert listed(record.plain) == counts(logits.argmax(1))
    honest = offsets.cross_fitted(logits, VAL.y, max_average_loss=0.05)
    assert listed(record.fitted) == counts(honest)
    logged = trainer.callback_metrics
    assert logged["val/recall/worst_at_best_offsets"] == pytest.approx(record.fitted.worst)
    assert logged["val/recall/mean_at_best_offsets"] == pytest.approx(record.fitted.mean)
    assert (record.name, record.epoch, record.step) == ("val", 2, trainer.global_step)


def test_training_is_as_without_it() -> None:
    weights = []
    for callbacks in ([], [RecallOffsets()]):
        pl.seed_everything(1)
        model = Model()
        users.trainer(callbacks=callbacks, max_epochs=2).fit(model, Data())
        weights.append(model.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name])


def test_a_checkpoint_holds_the_offsets_of_its_weights(tmp_path: Path) -> None:
    saving = ModelCheckpoint(
        tmp_path, save_top_k=-1, monitor="val/recall/worst_at_best_offsets", mode="max"
    )
    users.trainer(callbacks=[RecallOffsets(), saving], max_epochs=3, enable_checkpointing=True).fit(
        Model(), Data()
    )
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == 3
    for file in files:
        checkpoint = torch.load(file, weights_only=True)
        model = Model()
        model.load_state_dict(checkpoint["state_dict"])
        found = checkpoint["callbacks"]["RecallOffsets"]["offsets"]
        torch.testing.assert_close(found, offsets.fit(logits_of(model), VAL.y))


def test_two_lines_of_the_docs(tmp_path: Path) -> None:
    callback, model = RecallOffsets(), Model()
    users.trainer(callbacks=[callback], max_epochs=2).fit(model, Data())
    assert callback.offsets is not None
    expected = (logits_of(model) + callback.offsets).argmax(1)
    assert offsets.export(model, callback.offsets) == "net.2"
    assert torch.equal(logits_of(model).argmax(1), expected)


def test_a_resumed_fit_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    def run(epochs: int, ckpt: Path | None = None) -> tuple[RecallOffsets, pl.Trainer]:
        pl.seed_everything(1)
        callback = RecallOffsets()
        trainer = users.trainer(callbacks=[callback], max_epochs=epochs)
        trainer.fit(Model(), Data(shuffle=False), ckpt_path=ckpt)
        return callback, trainer

    whole, _ = run(3)
    first, trainer = run(2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    second, _ = run(3, tmp_path / "two.ckpt")
    restored = RecallOffsets()
    restored.load_state_dict(torch.load(tmp_path / "two.ckpt")["callbacks"]["RecallOffsets"])
    assert first.offsets is not None
    assert restored.offsets is not None
    assert torch.equal(restored.offsets, first.offsets)
    assert whole.record is not None
    assert second.record is not None
    torch.testing.assert_close(second.record.offsets, whole.record.offsets)
    assert listed(second.record.fitted) == listed(whole.record.fitted)


def test_groups(tmp_path: Path) -> None:
    callback, model = RecallOffsets(1.0, group_by=_odd), Model()
    users.trainer(callbacks=[callback], max_epochs=2).fit(model, Data())
    record, logits = callback.record, logits_of(model)
    group = _odd((VAL.x, VAL.y))
    assert record is not None
    assert record.plain_groups is not None
    assert record.plain_groups.num_classes == 2 * NUM_CLASSES
    expected = offsets.fit(logits, VAL.y, groups=group, max_average_loss=1.0)
    torch.testing.assert_close(record.offsets, expected)
    assert record.worst[0] == record.plain_groups.worst


def _odd(batch: Any) -> Tensor:
    x, y = batch
    return 2 * y + ((1000 * x[:, 0]).round().long() % 2)


def test_beside_a_monitor_that_counts_the_same_validation(tmp_path: Path) -> None:
    monitor, callback = lfp.RecallMonitor(figures=False), RecallOffsets()
    users.trainer(callbacks=[monitor, callback], max_epochs=2).fit(Model(), Data())
    assert callback.record is not None
    assert listed(callback.record.plain) == listed(monitor.counts["val"])


class TwoLoaders(Data):
    def val_dataloader(self) -> Any:
        return [super().val_dataloader(), super().val_dataloader()]


class TakesTwo(Model):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)


def test_a_second_loader() -> None:
    callback, trainer = RecallOffsets(recall_dataloader=1), users.trainer(max_epochs=1)
    trainer.callbacks.append(callback)  # type: ignore[attr-defined]
    trainer.fit(TakesTwo(), TwoLoaders())
    assert "val/1/recall/worst_at_best_offsets" in trainer.callback_metrics
    assert callback.record is not None
    assert callback.record.name == "val/1"


def test_without_validation() -> None:
    with pytest.raises(ValueError, match="needs the logits of a validation"):
        users.trainer(callbacks=[RecallOffsets()], max_epochs=1, limit_val_batches=0).fit(
            Model(), Data()
        )


class ManyLabels(Model):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        many = torch.nn.functional.one_hot(y, NUM_CLASSES).float()
        many[:, 0] = 1
        return torch.nn.functional.binary_cross_entropy_with_logits(self(x), many)


def test_samples_with_several_labels() -> None:
    with pytest.raises(ValueError, match="one class a sample"):
        users.trainer(callbacks=[RecallOffsets()], max_epochs=1).fit(ManyLabels(), Data())


def test_more_logits_than_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_fairprune._observe.validation.MOST_KEPT", 100)
    with pytest.raises(ValueError, match="at most 100 numbers"):
        users.trainer(callbacks=[RecallOffsets()], max_epochs=1).fit(Model(), Data())


@pytest.mark.parametrize("loss", [-0.1, 1.1, "much"])
def test_arguments(loss: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="max_average_loss"):
        RecallOffsets(loss)


def test_the_record_in_the_folder_of_the_logger(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    callback = RecallOffsets(group_by=_odd)
    logger = CSVLogger(tmp_path)
    users.trainer(callbacks=[callback], max_epochs=1, logger=logger).fit(Model(), Data())
    found, expected = OffsetsRecord.load(logger.log_dir), callback.record
    assert expected is not None
    assert expected.fitted_groups is not None
    assert found.fitted_groups is not None
    assert torch.equal(found.offsets, expected.offsets)
    assert listed(found.fitted_groups) == listed(expected.fitted_groups)
    assert (found.worst, found.epoch, found.step) == (expected.worst, 1, expected.step)
    assert found.training is not None


@pytest.mark.parametrize(
    ("old", "new"),
    [('"epoch": 3', '"epoch": 4'), ('"name": "val"', '"name": 7'), ("[", "{")],
)
def test_a_damaged_record(old: str, new: str, tmp_path: Path) -> None:
    one = ClassCounts(torch.tensor([9, 3]), torch.tensor([10, 10]))
    OffsetsRecord(torch.tensor([-0.5, 0.5]), "val", 3, 90, 0.01, one, one).save(tmp_path)
    file = tmp_path / "offsets.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match="cannot be loaded"):
        OffsetsRecord.load(tmp_path)


def test_a_missing_record(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train with RecallOffsets"):
        OffsetsRecord.load(tmp_path)


def run_with(folder: Path, plain: list[int], fitted: list[int], seed: int = 0) -> None:
    support = torch.tensor([100, 100])
    one, other = (ClassCounts(torch.tensor(tp), support) for tp in (plain, fitted))
    last = Evaluation("val", 3, 90, False, one)
    RecallHistory((last,), ("cat", "dog"), seed=seed).save(folder / "fairprune")
    OffsetsRecord(torch.tensor([-0.5, 0.5]), "val", 3, 90, 0.01, one, other).save(
        folder / "fairprune"
    )


def test_the_section_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_fairprune.report._build.drawings", lambda comparison: [])
    run_with(tmp_path / "a/0", [90, 50], [88, 70])
    run_with(tmp_path / "a/1", [90, 52], [86, 72], seed=1)
    report(f"<i>a={tmp_path / 'a'}", out=tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    section = page.split(">Threshold or representation</h2>")[1].split("</section>")[0]
    text = " ".join(re.sub(r"<[^>]+>", " ", section).split())
    assert "<i>a" not in section
    # Worst 51 to 71, average 70.5 to 79: 20 and 8 remain.
    for number in ("51.0", "71.0", "70.5", "79.0", "20.0", "8.0"):
        assert f" {number} " in text
    assert "moves the worst class by +20.0 points and the average by +8.5" in text
    assert "of 19.5 points between them 8.0 remain" in text
    assert "Threshold or representation" in (tmp_path / "out/summary.md").read_text()


def test_a_run_of_before_has_no_such_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_fairprune.report._build.drawings", lambda comparison: [])
    run_with(tmp_path / "a", [90, 50], [88, 70])
    (tmp_path / "a/fairprune/offsets.json").unlink()
    report(tmp_path / "a", out=tmp_path / "out")
    assert "Threshold or representation" not in (tmp_path / "out/index.html").read_text()


# Two ranks, each with a half of the validation: as one.


def _parts(reduce_sum: Any, reduce_max: Any, rank: int) -> tuple[Tensor, Tensor]:
    from lightning_fairprune.offsets.ranks import fitted_on_ranks

    logits, target = _halves()
    mine = slice(rank, None, 2)
    found, pred = fitted_on_ranks(logits[mine], target[mine], 0.02, None, reduce_sum, 0)
    return found, pred


def _halves() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(400) % 4
    logits = torch.randn(400, 4, generator=generator)
    logits[torch.arange(400), target] += 1.0
    return logits - torch.arange(4), target


def test_two_ranks_find_what_one_finds() -> None:
    found = ranks.together([partial(_parts, rank=rank) for rank in range(2)])
    (first, pred), (second, _) = found
    assert torch.equal(first, second)
    torch.testing.assert_close(first, offsets.fit(*_halves(), max_average_loss=0.02))
    assert pred.shape == (200,)


def test_a_rank_without_samples() -> None:
    from lightning_fairprune.offsets.ranks import fitted_on_ranks

    logits, target = _halves()

    def part(reduce_sum: Any, reduce_max: Any, rows: slice) -> Tensor:
        return fitted_on_ranks(logits[rows], target[rows], 0.02, None, reduce_sum, 0)[0]

    found = ranks.together([partial(part, rows=rows) for rows in (slice(0), slice(None))])
    torch.testing.assert_close(found[0], offsets.fit(logits, target, max_average_loss=0.02))
    assert torch.equal(*found)


def on_two_ranks() -> dict[str, Any]:
    """One fit: what a rank has at its end."""
    callback, model = RecallOffsets(), Model()
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp", "max_epochs": 2}
    users.trainer(callbacks=[callback], **options).fit(model, Data(n=104, batch_size=5))
    record = callback.record
    assert record is not None
    return {
        "offsets": record.offsets.tolist(),
        "plain": listed(record.plain),
        "fitted": listed(record.fitted),
        "logits": logits_of(model).tolist(),
    }


def test_a_fit_on_two_ranks(tmp_path: Path) -> None:
    [[one, other]] = ranks.launch(__file__, [{}], tmp_path)
    assert one == other
    logits = torch.tensor(one["logits"])
    expected = offsets.fit(logits, VAL.y)
    torch.testing.assert_close(torch.tensor(one["offsets"]), expected)
    assert one["plain"] == [*map(list, counts(logits.argmax(1)))]


if __name__ == "__main__":
    ranks.main(on_two_ranks)
