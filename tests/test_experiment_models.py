"""The papers' networks against published counts and torchvision, and the module that trains them."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any
from unittest.mock import Mock

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
import users
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_fairprune as lfp
from lightning_fairprune.experiments import models
from lightning_fairprune.experiments.models import Classifier, lr_factor

needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="needs torchvision")

NETWORKS = [n for n in models.__all__ if n not in ("Classifier", "lr_factor")]
# Of networks whose images are not [3, 32, 32].
SHAPES = {"LeNet5": (1, 32, 32), "LeNet300100": (1, 28, 28)}


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("network", "millions"),
    [
        # He et al. (2016), table 6.
        (lambda: models.CifarResNet(20), 0.27),
        (lambda: models.CifarResNet(32), 0.46),
        (lambda: models.CifarResNet(44), 0.66),
        (lambda: models.CifarResNet(56), 0.85),
        (lambda: models.CifarResNet(110), 1.7),
        # As torchvision documents them for ImageNet.
        (lambda: models.ResNet(18), 11.689512),
        (lambda: models.ResNet(50), 25.557032),
        # For CIFAR, as they are commonly quoted.
        (lambda: models.ResNet(18, 10, "small"), 11.17),
        (lambda: models.VGG(16), 14.72),
        (lambda: models.VGG(19), 20.04),
        (lambda: models.LeNet5(), 0.061706),
        (lambda: models.LeNet5(in_channels=3), 0.062006),
        (lambda: models.LeNet300100(), 0.26661),
        (lambda: models.SmallCNN(), 0.025354),
    ],
)
def test_published_numbers_of_weights(network: Any, millions: float) -> None:
    digits = len(str(millions).partition(".")[2])
    assert round(count(network()) / 1e6, digits) == millions


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gives_logits_and_learns_with_all_its_weights(name: str) -> None:
    kind, shape = getattr(models, name), SHAPES.get(name, (3, 32, 32))
    torch.manual_seed(5)
    network = kind(num_classes=7)
    torch.manual_seed(5)
    twin = kind(num_classes=7)
    assert all(map(torch.equal, network.state_dict().values(), twin.state_dict().values()))
    images = torch.randn(4, *shape)
    logits = network(images)
    assert logits.shape == (4, 7)
    F.cross_entropy(logits, torch.tensor([0, 3, 6, 2])).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters())
    last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    assert last.out_features == 7
    network.eval()
    spread = network(images.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(spread, network(images), atol=1e-4)


@needs_torchvision
@pytest.mark.parametrize("depth", [18, 50])
def test_resnet_is_torchvisions(depth: Any) -> None:
    from torchvision.models import get_model

    theirs, ours = get_model(f"resnet{depth}", num_classes=5).eval(), models.ResNet(depth, 5).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


@needs_torchvision
@pytest.mark.parametrize(("depth", "letter"), [(16, "D"), (19, "E")])
def test_vgg_is_torchvisions_up_to_the_last_pooling(depth: Any, letter: str) -> None:
    from torchvision.models import vgg

    theirs = vgg.make_layers(vgg.cfgs[letter], batch_norm=True).eval()
    ours = models.VGG(depth).features.eval()
    values = {k: v for k, v in theirs.state_dict().items() if v.ndim == 4 or k in ours.state_dict()}
    for module in theirs:
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.bias)  # ours have none, batch normalisation takes it away again
    ours.load_state_dict({k: v for k, v in values.items() if k in ours.state_dict()})
    images = torch.randn(2, 3, 32, 32)
    assert torch.allclose(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


@needs_torchvision
def test_pretrained_weights_are_all_but_the_last_layer(monkeypatch: Any) -> None:
    import torchvision

    get_model = Mock(return_value=(source := torchvision.models.get_model("resnet18")))
    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    torch.manual_seed(1)
    network = models.ResNet(18, 3, pretrained=True)
    torch.manual_seed(1)
    fresh = models.ResNet(18, 3)
    get_model.assert_called_once_with("resnet18", weights="IMAGENET1K_V1")
    for name, value in network.state_dict().items():
        known = fresh if name.startswith("fc.") else source
        assert torch.equal(value, known.state_dict()[name])


def test_the_shortcut_of_option_a_has_no_weights() -> None:
    from lightning_fairprune.experiments.models._cifar import _Block

    block = _Block(2, 4).eval()
    nn.init.zeros_(block.bn2.weight)
    images = torch.rand(1, 2, 4, 4)
    out = block(images)
    # Channels 1 and 2 are every other pixel of the old ones, 0 and 3 are new.
    assert torch.equal(out[0, 1:3], images[0, :, ::2, ::2])
    assert not out[0, [0, 3]].any()
    same = _Block(2, 2).eval()
    nn.init.zeros_(same.bn2.weight)
    assert torch.equal(same(images), images)


def test_stages_halve_the_image() -> None:
    network = models.CifarResNet(20)
    sizes = [network.blocks[: n + 1](torch.zeros(1, 16, 32, 32)).shape[1:] for n in (2, 5, 8)]
    assert sizes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    weighted = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == 20


def test_lenet_pads_small_images() -> None:
    large, small = models.LeNet5(image_size=32).eval(), models.LeNet5(image_size=28).eval()
    small.load_state_dict(large.state_dict())
    images = torch.randn(3, 1, 28, 28)
    assert torch.allclose(small(images), large(F.pad(images, (2, 2, 2, 2))), atol=1e-5)


def test_the_stem_for_small_images_keeps_their_size() -> None:
    small, large = models.ResNet(18, 10, "small"), models.ResNet(18, 10)
    images = torch.zeros(1, 3, 64, 64)
    assert small.maxpool(small.conv1(images)).shape[2:] == (64, 64)
    assert large.maxpool(large.conv1(images)).shape[2:] == (16, 16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.VGG(11), r"`depth` must be one of \[16, 19\], got 11"),
        (lambda: models.ResNet(34), r"`depth` must be one of \[18, 50\], got 34"),
        (lambda: models.ResNet(18, 10, "cifar"), "`stem` must be .*, got 'cifar'"),
        (lambda: models.ResNet(18, 10, "small", pretrained=True), "`pretrained` needs stem='imagenet', got 'small'"),
        (lambda: models.CifarResNet(18), r"`depth` must be 6n \+ 2, .*got 18"),
        (lambda: models.CifarResNet(2), r"`depth` must be 6n \+ 2, .*got 2"),
        (lambda: models.LeNet5(image_size=64), "`image_size` must be 28 or 32 pixels, got 64"),
    ],
)  # fmt: skip
def test_bad_networks(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_rates_by_hand() -> None:
    def step(i: int, **options: Any) -> float:
        return lr_factor(i, 100, **options)

    assert [step(i, schedule="multistep", gamma=0.1) for i in (0, 49)] == [1.0, 1.0]
    assert [round(step(i, schedule="multistep", gamma=0.1), 9) for i in (50, 75)] == [0.1, 0.01]
    # The middle of a cosine without a rise is a half; both kinds end at 0.
    assert lr_factor(49, 99, "cosine", rise=0.0) == pytest.approx(0.5)
    assert lr_factor(24, 99, "cosine", rise=0.5) == pytest.approx(0.5)
    for schedule in ("triangle", "cosine"):
        rates = [step(i, schedule=schedule, rise=0.2) for i in range(101)]
        assert rates[-1] == pytest.approx(0, abs=1e-12)
        top = rates.index(max(rates))
        assert rates[top] == pytest.approx(1, abs=0.02)
        assert 18 <= top <= 21
        assert rates[: top + 1] == sorted(rates[: top + 1])
        assert rates[top:] == sorted(rates[top:], reverse=True)
        assert step(500, schedule=schedule) == pytest.approx(0, abs=1e-12)  # past the end


class Data(pl.LightningDataModule):
    """Coloured squares whose class is the brightest colour."""

    def __init__(self, n: int = 40, batch_size: int = 10, groups: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(n, 3, 8, 8, generator=generator)
        labels = torch.arange(n) % 3
        images[torch.arange(n), labels] += 1
        tensors = [images, labels] + ([labels * 2] if groups else [])
        self.data, self.batch_size = TensorDataset(*tensors), batch_size

    def train_dataloader(self) -> Any:
        return DataLoader(self.data, self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.data, 16)  # the last batch is smaller

    def test_dataloader(self) -> Any:
        return DataLoader(self.data, 40)


class Rates(pl.Callback):
    """The learning rate of each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def rates(model: Classifier, data: Data, **options: Any) -> list[float]:
    seen = Rates()
    users.trainer(callbacks=[seen, *options.pop("callbacks", [])], **options).fit(model, data)
    return seen.seen


def test_milestones_in_epochs_and_in_shares_agree() -> None:
    expected = [0.1] * 8 + [0.02] * 4 + [0.004] * 4  # 4 epochs of 4 batches
    for milestones in ([2, 3], [2.0, 3.0], [0.5, 0.75]):
        model = Classifier(models.SmallCNN(3), milestones=milestones)
        assert rates(model, Data(), max_epochs=4) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["triangle", "cosine"])
def test_a_schedule_is_over_when_training_is(schedule: Any) -> None:
    model = Classifier(models.SmallCNN(3), 0.4, schedule=schedule)
    expected = [0.4 * lr_factor(i, 10, schedule) for i in range(10)]
    assert rates(model, Data(), max_epochs=3, max_steps=10) == pytest.approx(expected)


@pytest.mark.parametrize("options", [{"schedule": None}, {"milestones": []}])
def test_no_schedule(options: dict[str, Any]) -> None:
    model = Classifier(models.SmallCNN(3), 0.3, **options)
    assert rates(model, Data(), max_epochs=1) == [0.3] * 4


def test_a_schedule_knows_what_will_be_pruned() -> None:
    prune = lfp.DataPruning(density=0.5, warmup_epochs=1, shrinkage=100.0)
    model = Classifier(models.SmallCNN(3), 0.4, schedule="triangle")
    found = rates(model, Data(), max_epochs=3, callbacks=[prune])
    # One epoch of 4 batches, then two of 2.
    assert found == pytest.approx([0.4 * lr_factor(i, 8) for i in range(8)])


def test_accuracy_and_loss_are_of_all_samples() -> None:
    model, data = Classifier(models.SmallCNN(3)), Data()
    runner = users.trainer()
    (found,) = runner.validate(model, data, verbose=False)
    found |= runner.test(model, data, verbose=False)[0]
    images, labels = data.data.tensors
    model.eval()
    with torch.no_grad():
        logits = model(images)
    loss = float(F.cross_entropy(logits, labels))
    accuracy = float((logits.argmax(1) == labels).float().mean())
    for stage in ("val", "test"):
        assert found[f"{stage}/loss"] == pytest.approx(loss, rel=1e-5)
        assert found[f"{stage}/accuracy"] == pytest.approx(accuracy, rel=1e-6)


@pytest.mark.parametrize("groups", [False, True])
def test_it_learns_from_batches_with_and_without_groups(groups: bool) -> None:
    model = Classifier(models.SmallCNN(3), 0.1, nesterov=True, schedule="cosine")
    data = Data(240, 16, groups=groups)
    runner = users.trainer(max_epochs=4)
    runner.fit(model, data)
    assert runner.callback_metrics["val/accuracy"] > 0.9
    assert "train/loss" in runner.callback_metrics


def test_the_optimiser_is_that_of_the_papers() -> None:
    model = Classifier(nn.Linear(2, 2), 0.2, 0.8, 1e-4, nesterov=True, schedule=None)
    optimizer = model.configure_optimizers()
    assert type(optimizer) is torch.optim.SGD
    expected = {"lr": 0.2, "momentum": 0.8, "weight_decay": 1e-4, "nesterov": True, "dampening": 0}
    assert {k: optimizer.defaults[k] for k in expected} == expected
    assert sum(p.numel() for p in optimizer.param_groups[0]["params"]) == 6


def test_xavier_is_normal_with_gain_of_two() -> None:
    network = nn.Sequential(nn.Conv2d(30, 50, 3), nn.BatchNorm2d(50), nn.Linear(200, 300))
    nn.init.constant_(network[1].bias, 2.0)
    Classifier(network, init="xavier")
    fans = {0: 30 * 9 + 50 * 9, 2: 500}
    for i, fan in fans.items():
        weight: Tensor = network[i].weight
        wanted = math.sqrt(2) * math.sqrt(2 / fan)
        assert float(weight.detach().std()) == pytest.approx(wanted, rel=0.02)
        assert not bool(network[i].bias.any())
    assert bool((network[1].bias == 2).all())
    before = nn.Linear(3, 2)
    kept = before.weight.clone()
    assert torch.equal(Classifier(before).network.weight, kept)


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_is_laid_out_as_asked(channels_last: bool) -> None:
    seen = []
    network = models.SmallCNN(3)
    model = Classifier(network, channels_last=channels_last)
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for images in (torch.rand(2, 3, 8, 8), torch.rand(2, 8, 8, 3).permute(0, 3, 1, 2)):
        model(images)
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    assert all(x.is_contiguous(memory_format=wanted) for x in [*seen, network.net[4].weight])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0}, "`lr` must be above 0, got 0"),
        ({"schedule": "step"}, "`schedule` must be .*, got 'step'"),
        ({"milestones": [0.5, 3]}, r"`milestones` must be shares .*got \[0.5, 3\]"),
        ({"milestones": [2.5]}, r"whole epochs .*got \[2.5\]"),
        ({"milestones": [0.7, 0.5]}, r"rising, got \[0.7, 0.5\]"),
        ({"milestones": [0, 0.5]}, r"got \[0, 0.5\]"),
        ({"gamma": 0.0}, "`gamma` must be above 0, got 0.0"),
        ({"rise": 1.0}, r"`rise` must be in \[0, 1\), got 1.0"),
        ({"init": "he"}, "`init` must be 'xavier' or None, got 'he'"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classifier(nn.Linear(2, 2), **options)


def test_two_models_from_one_setting_have_networks_of_their_own(monkeypatch: Any) -> None:
    # A grid of seeds makes model after model from one parsed YAML file.
    import jsonargparse

    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # newer ones rename a method
    network = {"class_path": "lightning_fairprune.experiments.models.SmallCNN"}
    path = "lightning_fairprune.experiments.models.Classifier"
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=Callable[[], pl.LightningModule])
    given = {"model": {"class_path": path, "init_args": {"network": network}}}
    make = parser.instantiate_classes(parser.parse_object(given)).model
    states = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        states.append(make().state_dict()["network.net.0.weight"])
    assert torch.equal(states[0], states[2])
    assert not torch.equal(states[0], states[1])
    assert states[0].data_ptr() != states[2].data_ptr()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_written_in_yaml(name: str, monkeypatch: Any) -> None:
    import jsonargparse

    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # newer ones rename a method
    text = f"""
model:
  class_path: lightning_fairprune.experiments.models.Classifier
  init_args:
    network:
      class_path: lightning_fairprune.experiments.models.{name}
      init_args: {{num_classes: 4}}
    lr: 0.2
    milestones: [80, 120]
    init: xavier
"""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(pl.LightningModule, "model")
    once = parser.dump(parser.parse_string(text))
    model = parser.instantiate_classes(parser.parse_string(once)).model
    assert type(model.network) is getattr(models, name)
    assert (model.lr, model.milestones) == (0.2, [80, 120])
