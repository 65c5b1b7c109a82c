"""Batches of every kind keep their indices, and users' code sees what it always saw."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import signal
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
import users
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, default_collate

import lightning_fairprune as lfp
from lightning_fairprune._loading.index import IndexedBatch

N, BATCH, CLASSES, BUDGET = 48, 8, 4, 24
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, 3, generator=GENERATOR)
ORDER = torch.randperm(N, generator=GENERATOR).tolist()
POSITION = torch.tensor(ORDER).argsort()  # of a content inside Subset(..., ORDER)

# ---------------------------------------------------------------------------- users' batch types


class Fields(NamedTuple):
    """What a test has to know of a batch; the users have other types."""

    x: Tensor
    y: Tensor
    index: Tensor


class Samples(Dataset[Any]):
    """Sample i says that it is sample i."""

    def __init__(self, start: int = 0, stop: int = N) -> None:
        self.start, self.stop = start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, i: int) -> Any:
        i += self.start
        return X[i], i % CLASSES, i


class Dicts(Samples):
    def __getitem__(self, i: int) -> Any:
        x, y, i = super().__getitem__(i)
        return {"x": x, "y": y, "index": i, "name": f"sample {i}", "group": i % 2}


@dataclasses.dataclass
class Record:
    x: Tensor
    y: Tensor
    index: Tensor
    group: Tensor


class Own:
    """A batch that torch and Lightning know nothing of."""

    def __init__(self, samples: list[Any]) -> None:
        self.parts = default_collate(samples)


def as_record(samples: list[Any]) -> Record:
    x, y, index = default_collate(samples)
    return Record(x, y, index, index % 2)


class Columns(Dataset[Any]):
    """Fetches a whole TensorDict at once."""

    def __init__(self) -> None:
        tensordict = pytest.importorskip("tensordict")
        index = torch.arange(N)
        self.data = tensordict.TensorDict(
            {"x": X, "y": index % CLASSES, "index": index}, batch_size=[N]
        )

    def __len__(self) -> int:
        return N

    def __getitems__(self, indices: list[int]) -> Any:
        return self.data[torch.as_tensor(indices)]


def as_it_is(batch: Any) -> Any:
    return batch


def hugging_face() -> Any:
    datasets = pytest.importorskip("datasets")
    columns = {"x": X.tolist(), "y": [i % CLASSES for i in range(N)], "index": list(range(N))}
    return datasets.Dataset.from_dict(columns).with_format("torch")


def of_dict(batch: Any) -> Fields:
    return Fields(batch["x"], batch["y"], batch["index"])


def of_named_dict(batch: Any) -> Fields:
    assert batch["name"] == [f"sample {i}" for i in batch["index"].tolist()]
    return of_dict(batch)


class Kind(NamedTuple):
    dataset: Callable[[], Any]
    collate: Callable[[Any], Any] | None
    type_name: str
    read: Callable[[Any], Fields]
    position: Callable[[Tensor], Tensor] = torch.as_tensor
    """From what a sample says of itself to its index in the data set."""


KINDS = {
    "tuple": Kind(Samples, None, "list", lambda b: Fields(*b)),
    "dict": Kind(Dicts, None, "dict", of_named_dict),
    "dataclass": Kind(Samples, as_record, "Record", lambda b: Fields(b.x, b.y, b.index)),
    "object": Kind(Samples, Own, "Own", lambda b: Fields(*b.parts)),
    "hugging_face": Kind(hugging_face, None, "dict", of_dict),
    "tensordict": Kind(Columns, as_it_is, "TensorDict", of_dict),
    "subset": Kind(
        lambda: Subset(Samples(), ORDER), None, "list", lambda b: Fields(*b), lambda i: POSITION[i]
    ),
    "concat": Kind(
        lambda: ConcatDataset([Samples(0, 20), Samples(20, N)]),
        None,
        "list",
        lambda b: Fields(*b),
    ),
}


class Data(pl.LightningDataModule):
    def __init__(self, kind: Kind, workers: int = 0) -> None:
        super().__init__()
        self.kind, self.workers, self.dataset = kind, workers, kind.dataset()

    def loader(self, **options: Any) -> Any:
        return DataLoader(self.dataset, BATCH, collate_fn=self.kind.collate, **options)

    def train_dataloader(self) -> Any:
        many = self.workers > 0
        return self.loader(shuffle=True, num_workers=self.workers, persistent_workers=many)

    def val_dataloader(self) -> Any:
        return self.loader()


class Model(pl.LightningModule):
    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind, self.net, self.log_of_calls = kind, nn.Linear(3, CLASSES), []

    def shared_step(self, batch: Any) -> Tensor:
        assert type(batch).__name__ == self.kind.type_name
        assert not isinstance(batch, IndexedBatch)
        fields = self.kind.read(batch)
        return F.cross_entropy(self.net(fields.x), fields.y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.shared_step(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.shared_step(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def with_loaders(model: Any, data: Any) -> Any:
    """A model of the same kind that brings its own loaders."""

    class ModelWithLoaders(type(model)):  # type: ignore[misc]
        def train_dataloader(self) -> Any:
            return data.train_dataloader()

        def val_dataloader(self) -> Any:
            return data.val_dataloader()

    model.__class__ = ModelWithLoaders
    return model


def source_of(form: str, model: Any, data: Any) -> dict[str, Any]:
    """The arguments of trainer.fit in one of the three forms of use."""
    if form == "module":
        return {"model": with_loaders(model, data)}
    return {
        "model": model,
        "datamodule": lfp.FairPruneDataModule(data) if form == "wrapper" else data,
    }


class Follower(pl.Callback):
    """Compares the index that the library assigns with what the batch says, on every batch."""

    def __init__(self, prune: lfp.DataPruning, kind: Kind) -> None:
        self.prune, self.kind = prune, kind
        self.seen: dict[int, list[int]] = {}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, i: int) -> None:
        assert type(batch).__name__ == self.kind.type_name

    def on_train_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, i: int) -> None:
        index = self.kind.position(self.kind.read(batch).index)
        if self.prune.selection is None:
            assert self.prune.run.source.carry_index
            assert torch.equal(self.prune.run.source.indices, index)
        else:
            assert not self.prune.run.source.carry_index
            assert torch.isin(index, self.prune.selection.indices).all()
        self.seen.setdefault(trainer.current_epoch, []).extend(index.tolist())


FORMS = ("wrapper", "datamodule", "module")
MATRIX = [(kind, form, 0) for kind in KINDS for form in FORMS]
# Workers take a second to start: one form for each type, all of them in turn.
MATRIX += [(kind, FORMS[i % 3], 2) for i, kind in enumerate(KINDS)]


@pytest.mark.parametrize(("name", "form", "workers"), MATRIX)
def test_index_is_that_of_the_content_on_every_batch(name: str, form: str, workers: int) -> None:
    kind = KINDS[name]
    prune = lfp.DataPruning(density=0.5, warmup_epochs=1)
    follower = Follower(prune, kind)
    trainer = users.trainer(callbacks=[prune, follower], max_epochs=3)
    trainer.fit(**source_of(form, Model(kind), Data(kind, workers)))
    assert sorted(follower.seen[0]) == list(range(N))
    for epoch in (1, 2):
        assert len(set(follower.seen[epoch])) == len(follower.seen[epoch]) == BUDGET
    content = torch.arange(N)
    if name == "subset":
        content = torch.tensor(ORDER)
    assert torch.equal(prune.dynamics.target, content % CLASSES)


# -------------------------------------------------------------------------------------- group_by


def parity(batch: Any) -> Tensor:
    return batch[2] % 2


class Grouped(Samples):
    def __getitem__(self, i: int) -> Any:
        x, y, i = super().__getitem__(i)
        return x, y, i, i % 2


GROUPS: dict[str, tuple[Kind, Any]] = {
    "key": (KINDS["dict"], "group"),
    "attribute": (KINDS["dataclass"], "group"),
    "position": (Kind(Grouped, None, "list", lambda b: Fields(*b[:3])), 3),
    "function": (KINDS["tuple"], parity),
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups_take_the_place_of_classes(name: str) -> None:
    kind, group_by = GROUPS[name]
    prune = lfp.DataPruning(0.5, 1, group_by=group_by)
    users.trainer(callbacks=[prune], max_epochs=2).fit(Model(kind), Data(kind))
    assert torch.equal(prune.dynamics.group, torch.arange(N) % 2)
    assert prune.quota.tolist() == [
        int((prune.selection.indices % 2 == group).sum()) for group in (0, 1)
    ]
    assert len(prune.history[0].recall) == 2


# ---------------------------------------------------------------------------------- users' hooks

HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def hooked(base: type, names: tuple[str, ...], whose: str, calls: list[Any]) -> type:
    """A subclass that notes each call of its hooks, and with what type."""

    def make(name: str) -> Any:
        def hook(self: Any, batch: Any, *rest: Any) -> Any:
            calls.append((whose, name, type(batch).__name__))
            return getattr(base, name)(self, batch, *rest)

        return hook

    return type(base.__name__, (base,), {name: make(name) for name in names})


class Noting(Model):
    calls: list[Any]

    def shared_step(self, batch: Any) -> Tensor:
        self.calls.append(("model", "step", type(batch).__name__))
        return super().shared_step(batch)


WHERE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "data": (HOOKS, ()),
    "model": ((), HOOKS),
    "both": (HOOKS, HOOKS),
    "data_before_model_after": (HOOKS[:1], HOOKS[2:]),
    "model_before_data_rest": (HOOKS[1:], HOOKS[:1]),
}


def calls_of(
    where: str, form: str | None, kind: Kind = KINDS["object"], epochs: int = 2
) -> list[Any]:
    calls: list[Any] = []
    in_data, in_model = WHERE[where]
    data = hooked(Data, in_data, "data", calls)(kind)
    model = hooked(Noting, in_model, "model", calls)(kind)
    model.calls = calls
    if form is None:  # plain Lightning
        users.trainer(max_epochs=epochs).fit(model, data)
    else:
        prune = lfp.DataPruning(0.5, 1)
        users.trainer(callbacks=[prune], max_epochs=epochs).fit(**source_of(form, model, data))
    return calls


# What Lightning says whenever the module has a hook next to a data module, pruning or not.
BESIDES = "ignore:You have overridden `.*` in"

# LightningDataModule.from_datasets always pins memory.
NO_PINNING = "ignore:'pin_memory' argument is set as true but no accelerator is found"


@pytest.mark.filterwarnings(BESIDES)
@pytest.mark.parametrize("form", ["wrapper", "datamodule"])
@pytest.mark.parametrize("where", WHERE)
def test_hooks_are_called_once_per_batch_as_lightning_would(where: str, form: str) -> None:
    plain, pruned = calls_of(where, None, epochs=1), calls_of(where, form)
    full, val = N // BATCH, N // BATCH
    each = len(plain) // (full + val)
    assert plain == plain[:each] * (full + val)
    assert pruned[: len(plain)] == plain
    assert pruned[len(plain) :] == plain[:each] * (BUDGET // BATCH + val)


def test_hooks_of_a_module_with_loaders_are_called_once_per_batch() -> None:
    plain, pruned = calls_of("model", None, epochs=1), calls_of("model", "module")
    assert pruned[: len(plain)] == plain
    assert len(pruned) - len(plain) == 4 * (BUDGET // BATCH + N // BATCH)


class Stop(RuntimeError):
    pass


class Stopping(Model):
    """Ends training somewhere."""

    where, error = ("training", 0), Stop

    def _maybe(self, stage: str) -> None:
        if self.where == (stage, self.current_epoch):
            if self.error is None:
                self.trainer.should_stop = True
            else:
                raise self.error

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self._maybe("training")
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self._maybe("validation")


PATCHED = ("train_dataloader", "on_before_batch_transfer")


def left_behind(*objects: Any) -> list[Any]:
    return [{name: vars(o)[name] for name in PATCHED if name in vars(o)} for o in objects]


STOPS: dict[str, tuple[Any, Any]] = {
    "end": (("training", 99), None),
    "exception_in_warmup": (("training", 0), Stop),
    "exception_after_swap": (("training", 1), Stop),
    "exception_in_validation": (("validation", 0), Stop),
    "ctrl_c": (("training", 0), KeyboardInterrupt),
    "should_stop": (("training", 1), None),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stop", STOPS)
def test_users_objects_are_as_before(stop: str, form: str) -> None:
    kind = KINDS["tuple"]
    model, data = Stopping(kind), hooked(Data, HOOKS[:1], "data", [])(kind)
    model.where, model.error = STOPS[stop]
    arguments = source_of(form, model, data)
    objects = (model, data, *arguments.values())
    before = left_behind(*objects)
    trainer = users.trainer(callbacks=[lfp.DataPruning(0.5, 1)], max_epochs=2)
    if model.error is None:
        trainer.fit(**arguments)
    else:
        handler = signal.getsignal(signal.SIGINT)  # Lightning switches Ctrl+C off
        try:
            with pytest.raises(SystemExit if stop == "ctrl_c" else Stop):
                trainer.fit(**arguments)
        finally:
            signal.signal(signal.SIGINT, handler)
    assert left_behind(*objects) == before
    assert left_behind(model, data) == [{}, {}]
    assert torch._C._len_torch_function_stack() == 0
    # and they can be trained again
    model.train().where = ("training", 99)
    users.trainer(max_epochs=1).fit(**arguments)


@pytest.mark.filterwarnings(NO_PINNING)
@pytest.mark.parametrize("form", ["wrapper", "datamodule"])
def test_loaders_set_on_the_instance_survive_the_fit(form: str) -> None:
    # from_datasets sets its loaders as attributes of the instance.
    data = pl.LightningDataModule.from_datasets(Samples(), Samples(), batch_size=BATCH)
    kind = KINDS["tuple"]
    for _ in range(2):
        prune = lfp.DataPruning(0.5, 1)
        before = data.train_dataloader
        users.trainer(callbacks=[prune], max_epochs=2).fit(
            **source_of(form, Model(kind), data),
        )
        assert data.train_dataloader is before
        assert len(prune.selection) == BUDGET


# ------------------------------------------------------------------------------------ the wrapper

OPTIONAL = {
    "prepare_data",
    "val_dataloader",
    "test_dataloader",
    "predict_dataloader",
    *HOOKS,
}
ALWAYS = {
    "setup",
    "teardown",
    "on_exception",
    "train_dataloader",
    "state_dict",
    "load_state_dict",
}
NO_HOOKS = {
    "from_datasets",
    "load_from_checkpoint",
    "save_hyperparameters",
    "remove_ignored_hparams",
}


def hooks_of_lightning() -> set[str]:
    kind = pl.LightningDataModule
    return {name for name in dir(kind) if name[0] != "_" and callable(getattr(kind, name))}


def test_every_public_hook_of_lightning_is_accounted_for() -> None:
    assert hooks_of_lightning() <= OPTIONAL | ALWAYS | NO_HOOKS


@pytest.mark.parametrize("name", sorted(OPTIONAL))
def test_optional_hook_is_overridden_exactly_where_the_users_is(name: str) -> None:
    calls: list[Any] = []

    def hook(self: Any, *args: Any) -> Any:
        calls.append(args)
        return "result"

    with_it = type("With", (pl.LightningDataModule,), {name: hook})()
    for inner, expected in ((with_it, True), (pl.LightningDataModule(), False)):
        wrapper = lfp.FairPruneDataModule(inner)
        assert is_overridden(name, wrapper) is is_overridden(name, inner) is expected
    assert getattr(lfp.FairPruneDataModule(with_it), name)(1, 2) == "result"
    assert calls == [(1, 2)]


class Noted(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self.batch_size = 2
        self.num_classes = 7

    def setup(self, stage: str) -> None:
        self.calls.append(("setup", stage))

    def teardown(self, stage: str) -> None:
        self.calls.append(("teardown", stage))

    def on_exception(self, exception: BaseException) -> None:
        self.calls.append(("on_exception", str(exception)))

    def state_dict(self) -> dict[str, Any]:
        return {"mine": 3}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.calls.append(("load", state_dict))


def test_other_hooks_reach_the_wrapped_module() -> None:
    inner = Noted()
    wrapper = lfp.FairPruneDataModule(inner)
    wrapper.setup("fit")
    wrapper.on_exception(ValueError("oh"))
    wrapper.teardown("fit")
    assert inner.calls == [("setup", "fit"), ("on_exception", "oh"), ("teardown", "fit")]


def test_state_of_the_wrapped_module_is_nested() -> None:
    inner = Noted()
    wrapper = lfp.FairPruneDataModule(inner)
    state = wrapper.state_dict()
    assert state["datamodule"] == {"mine": 3}
    assert state["source"]["kept"] is None
    wrapper.load_state_dict(state)
    assert inner.calls == [("load", {"mine": 3})]


def test_attributes_are_those_of_the_wrapped_module() -> None:
    inner = Noted()
    wrapper = lfp.FairPruneDataModule(inner)
    assert (wrapper.num_classes, wrapper.batch_size) == (7, 2)
    wrapper.batch_size = 16
    assert inner.batch_size == wrapper.batch_size == 16
    assert "batch_size" not in vars(wrapper)
    wrapper.something_new = 1
    assert not hasattr(inner, "something_new")
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = wrapper.no_such_thing


def test_hyper_parameters_are_those_of_the_wrapped_module() -> None:
    class WithParameters(users.Data):
        def __init__(self, n: int = 30, depth: int = 2) -> None:
            super().__init__(n)
            self.save_hyperparameters()

    inner = WithParameters(depth=5)
    wrapper = lfp.FairPruneDataModule(inner)
    assert dict(wrapper.hparams) == {"n": 30, "depth": 5}
    assert wrapper.hparams_initial == inner.hparams_initial
    assert wrapper._log_hyperparams is inner._log_hyperparams is True


def test_trainer_is_known_to_the_wrapped_module_and_the_source() -> None:
    class Curious(users.Data):
        def train_dataloader(self) -> Any:
            self.asked = self.trainer.max_epochs
            return super().train_dataloader()

    inner = Curious(30)
    wrapper = lfp.FairPruneDataModule(inner)
    assert wrapper.trainer is None
    trainer = users.trainer(max_epochs=2, callbacks=[lfp.DataPruning(0.5, 1)])
    trainer.fit(users.Model(), wrapper)
    assert inner.asked == 2
    assert inner.trainer is wrapper.trainer is trainer is wrapper.source.trainer


def test_wrapper_without_the_callback_trains_on_everything() -> None:
    probe = users.Probe()
    trainer = users.trainer(callbacks=[probe], max_epochs=2)
    trainer.fit(users.Model(), lfp.FairPruneDataModule(users.Data(30)))
    for samples in probe.samples.values():
        assert sorted(samples) == list(range(30))


@pytest.mark.filterwarnings(NO_PINNING)
def test_module_without_validation_has_none_in_the_wrapper() -> None:
    class NoValidation(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(users.Blobs(30), batch_size=10, shuffle=True)

    class NoValidationModel(users.Model):
        validation_step = pl.LightningModule.validation_step

    for inner in (
        NoValidation(),
        pl.LightningDataModule.from_datasets(users.Blobs(30), batch_size=10),
    ):
        prune = lfp.DataPruning(0.5, 1, quota=lfp.quotas.proportional)
        trainer = users.trainer(max_epochs=2, callbacks=[prune])
        trainer.fit(NoValidationModel(), lfp.FairPruneDataModule(inner))
        assert not trainer.enable_validation
        assert prune.selection is not None


def test_batch_size_finder_sets_the_users_batch_size(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # it saves a checkpoint where it is
    inner = users.Data(60, batch_size=5)
    trainer = users.trainer(max_epochs=1, default_root_dir=tmp_path)
    found = Tuner(trainer).scale_batch_size(
        users.Model(), datamodule=lfp.FairPruneDataModule(inner), max_trials=3, steps_per_trial=1
    )
    assert inner.batch_size == found == 8  # twice 2, twice 4


class OfSize(users.Data):
    def train_dataloader(self) -> Any:
        self.asked = self.batch_size
        return super().train_dataloader()


FINDERS: dict[str, Callable[[], Any]] = {
    "batch_size": lambda: BatchSizeFinder(max_trials=3, steps_per_trial=1),
    "learning_rate": lambda: LearningRateFinder(num_training_steps=20, update_attr=True),
}


@pytest.mark.parametrize("finder", FINDERS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_finders_try_things_out_before_the_warm_up(
    wrapped: bool, finder: str, tmp_path: Any
) -> None:
    inner, prune, probe = OfSize(60, batch_size=5), lfp.DataPruning(0.5, 1), users.Probe()
    callbacks = [prune, FINDERS[finder](), probe]
    trainer = users.trainer(max_epochs=2, callbacks=callbacks, default_root_dir=tmp_path)
    trainer.fit(users.Model(), lfp.FairPruneDataModule(inner) if wrapped else inner)
    assert inner.asked == (8 if finder == "batch_size" else 5)
    assert sorted(probe.samples[0]) == list(range(60))
    assert sorted(set(probe.samples[1])) == sorted(probe.samples[1])
    assert len(probe.samples[1]) == len(prune.selection) == 30


def test_copies_and_pickles_serve_their_own_data() -> None:
    inner = users.Data(30)
    wrapper = lfp.FairPruneDataModule(inner)
    for other in (copy.deepcopy(wrapper), pickle.loads(pickle.dumps(wrapper))):
        assert other.datamodule is not inner
        other.batch_size = 15
        trainer = users.trainer(max_epochs=1)
        trainer.fit(users.Model(), other)
        assert trainer.num_training_batches == 2
    assert inner.trainer is None
