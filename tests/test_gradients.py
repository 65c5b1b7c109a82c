"""Every norm equals that of an ordinary backward pass on the sample alone, whichever way it is computed."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import oracles_gradients as oracle
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from lightning_fairprune.gradients import grad_norm, last_layer_grad_norm

CE = nn.CrossEntropyLoss()
EACH = nn.CrossEntropyLoss(reduction="none")


def data(*shape: int, size: int = 7, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Batches of 4 and 3 float64 samples."""
    x = torch.randn(size, *shape, dtype=torch.float64)
    y = torch.randint(classes, (size,))
    return list(zip(x.split(4), y.split(4), strict=True))


def check(
    model: nn.Module,
    batches: list[Any],
    loss_fn: Callable[[Any, Any], Tensor] = CE,
    names: list[str] | None = None,
) -> None:
    """Holds the norms to a loop; a warning, which is an error here, would say that they came from one."""
    model = oracle.settled(model).double().train()
    found = grad_norm(model, batches, loss_fn, parameters=names)
    expected = oracle.loop(model, batches, loss_fn, names)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def mlp(**options: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(5, 8, **options), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3, **options)
    )


@pytest.mark.parametrize("loss_fn", [CE, EACH, nn.CrossEntropyLoss(reduction="sum")])
def test_mlp(loss_fn: nn.Module) -> None:
    check(mlp(), data(5), loss_fn)


@pytest.mark.parametrize("inplace", [False, True])
def test_lenet(inplace: bool) -> None:
    check(oracle.LeNet(inplace=inplace), data(1, 28, 28, classes=10))


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_resnet18(stem: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(num_classes=10)
    if stem == "cifar":
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    oracle.settled(model)
    side = 32 if stem == "imagenet" else 16
    x, y = torch.randn(2, 3, side, side), torch.randint(10, (2,))
    expected = oracle.loop(model, [(x, y)], CE)
    torch.testing.assert_close(grad_norm(model, [(x, y)], CE), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_transformer_with_tied_embeddings(batch_first: bool, norm_first: bool) -> None:
    model = oracle.LanguageModel(batch_first=batch_first, norm_first=norm_first)
    tokens = torch.randint(4, (7, 6))  # few words: they repeat, and 0 is padding
    target = torch.randint(11, (7, 6))
    check(
        model,
        list(zip(tokens.split(4), target.split(4), strict=True)),
        oracle.next_token,
    )


def test_transformer_with_padding_and_named_inputs() -> None:
    tokens, target = torch.randint(11, (6, 5)), torch.randint(11, (6, 5))
    padding = torch.arange(5) >= torch.tensor([[5], [4], [3], [5], [2], [1]])
    batches = [({"tokens": tokens, "padding": padding}, target)]
    check(oracle.LanguageModel(), batches, oracle.next_token)


def test_encoder_as_first_layer_does_not_take_the_fused_path() -> None:
    encoder = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    check(encoder, data(4, 6), lambda z, y: EACH(z.mean(1)[:, :3], y))
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"add_bias_kv": True}, {"kdim": 6, "vdim": 6}]
)
def test_attention_whose_weights_are_used(options: dict[str, Any]) -> None:
    x, y = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    check(oracle.CrossAttention(**options), [((x, y), torch.randint(3, (5,)))])


def conv(axes: int, **options: Any) -> nn.Sequential:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    return nn.Sequential(kind(4, 6, **options), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))


def variants() -> Iterator[Any]:
    kinds = ((1, 0), (3, 1), (2, "same"), (3, "valid"))  # kernel, padding
    steps = ((1, 1), (2, 1), (1, 2), (2, 2))  # stride, dilation
    for i, ((kernel, padding), (stride, dilation)) in enumerate(itertools.product(kinds, steps)):
        if padding != "same" or stride == 1:
            options = {"kernel_size": kernel, "padding": padding, "groups": 1 + i // 2 % 2}
            yield 1 + i % 3, options | {"stride": stride, "dilation": dilation}
    for mode in ("reflect", "replicate", "circular"):
        yield 2, {"kernel_size": (3, 2), "padding": (1, 2), "padding_mode": mode}
    yield 3, {"kernel_size": 2, "padding": "same", "padding_mode": "replicate"}
    sparse = {"stride": (1, 3), "dilation": (2, 1), "bias": False}
    yield 2, {"kernel_size": (3, 1), "padding": (2, 0)} | sparse


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("axes", "options"), list(variants()))
def test_convolutions(axes: int, options: dict[str, Any]) -> None:
    batches = data(4, *(6, 5, 5)[:axes])
    model = conv(axes, **options).double()
    model(batches[0][0])
    check(model, batches)


@pytest.mark.parametrize("size", [3, 9])
def test_wide_and_narrow_convolutions_take_either_form(size: int) -> None:
    # 9 places against 144 x 40 weights: pairs of places; 81 places against 18 x 2: the gradient itself.
    wide, narrow = nn.Conv2d(16, 40, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
    layer, channels = (wide, 16) if size == 3 else (narrow, 2)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(layer.out_channels * size**2, 3))
    check(model, data(channels, size, size))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Identity(), (6,)),
        (nn.Identity(), (4, 6)),
        (nn.Identity(), (2, 4, 6)),
        (nn.LayerNorm(6), (4, 6)),
        (nn.LayerNorm((4, 6), bias=False), (4, 6)),
        (nn.RMSNorm(6), (4, 6)),
        (nn.BatchNorm1d(6), (6,)),
        (nn.BatchNorm1d(4), (4, 6)),
        (nn.BatchNorm2d(4), (4, 3, 6)),
        (nn.BatchNorm3d(4), (4, 2, 3, 6)),
        (nn.GroupNorm(2, 4), (4, 3, 6)),
        (nn.GroupNorm(2, 6), (6,)),
        (nn.InstanceNorm1d(4, affine=True), (4, 6)),
        (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (4, 3, 6)),
        (nn.InstanceNorm3d(4, affine=True), (4, 2, 3, 6)),
    ],
    ids=repr,
)
def test_linear_and_normalisation(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(layer, nn.Linear(6, 5), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))
    batches = data(*shape)
    model.double()(batches[0][0])
    check(model, batches)


@pytest.mark.parametrize("tokens", [(), (5,), (2, 5)])
@pytest.mark.parametrize("options", [{}, {"padding_idx": 1}])
def test_embeddings(tokens: tuple[int, ...], options: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Embedding(4, 6, **options), nn.Flatten(), nn.LazyLinear(3))
    x, y = torch.randint(4, (6, *tokens)), torch.randint(3, (6,))
    model(x)
    check(model, [(x, y)])


@pytest.mark.parametrize("raw", [False, True])
def test_a_part_that_the_model_runs_without_gradients(raw: bool) -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
            self.scale = nn.Parameter(torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.body(x).tanh()
            return self.head(x * self.scale)

    model = Frozen()
    names = ["body.weight", "head.weight"] + ["scale"] * raw
    check(model, data(4), CE, names)


def test_one_layer_used_several_times() -> None:
    check(oracle.Recurrent(), data(4))


def test_one_convolution_in_two_places() -> None:
    shared = nn.Conv2d(2, 2, 3, padding=1)
    check(
        nn.Sequential(shared, nn.Tanh(), shared, nn.Flatten(), nn.Linear(32, 3)),
        data(2, 4, 4),
    )


def overridden() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: F.linear(x, layer.weight * 2)  # type: ignore[method-assign]
    return layer


def pruned() -> nn.Module:
    layer = nn.Linear(4, 4)
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


def normed() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return torch.nn.utils.weight_norm(nn.Linear(4, 4))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: oracle.Doubled(4, 4),
        overridden,
        pruned,
        normed,
        lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        lambda: torch.nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)),
        lambda: nn.PReLU(),
    ],
)
def test_layers_without_a_rule(layer: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), layer(), nn.Tanh(), nn.Linear(4, 3))
    check(model, data(4))


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}])
def test_recurrent_layers(layer: Any, options: dict[str, Any]) -> None:
    model = nn.Sequential(
        nn.Linear(4, 4), oracle.Last(layer(4, 4, batch_first=True, **options)), nn.LazyLinear(3)
    ).double()
    model(data(6, 4)[0][0])
    check(model, data(6, 4))


def test_raw_parameters() -> None:
    check(oracle.Prompted(), data(5, 4))


def test_an_operation_that_torch_func_does_sample_by_sample() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.PReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    check(model, data(2, 4, 4))  # torch warns about it, which is an error here


def test_transposed_convolution_and_bag() -> None:
    check(nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.Flatten(), nn.Linear(75, 3)), data(2, 4, 4))
    bag = nn.Sequential(nn.EmbeddingBag(5, 4), nn.Linear(4, 3))
    check(bag, [(torch.randint(5, (5, 3)), torch.randint(3, (5,)))])


def test_a_way_that_depends_on_the_sample() -> None:
    batches = data(4)
    batches[0][0][:2, 0] = 1.0  # the second expert is first called after the trial
    batches[0][0][2:, 0] = -1.0
    with pytest.warns(UserWarning, match="one backward pass per sample, which is right but slow"):
        check(oracle.Experts(), batches)


def test_a_layer_that_is_never_called_costs_nothing() -> None:
    model = mlp()
    model.unused = nn.Linear(2, 2)
    model.forward = lambda x: model[3](model[2](model[1](model[0](x))))  # type: ignore[method-assign]
    check(model, data(5))


@pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.autocast:FutureWarning")  # torch 2.4 itself
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks(reentrant: bool) -> None:
    class Saved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 4))
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(checkpoint(self.block, self.first(x), use_reentrant=reentrant))

    if reentrant:
        with pytest.raises(RuntimeError, match="use_reentrant"):
            check(Saved(), data(4))
    else:
        with pytest.warns(UserWarning, match="one backward pass per sample"):
            check(Saved(), data(4))


def test_an_input_changed_in_place_when_the_layer_no_longer_needs_it() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            y = self.inner(x)
            x += y  # the gradient of a bias does not need x
            return self.last(x)

    model = Residual()
    model.inner.weight.requires_grad_(False)
    check(model, data(4), CE, ["inner.bias", "last.weight"])


def test_a_user_hook_that_changes_the_output_comes_after() -> None:
    model = mlp()
    model[0].register_forward_hook(lambda module, args, output: output * 3)
    model[3].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    check(model, data(5))


def test_weights_of_a_weighted_mean_cancel() -> None:
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.1], dtype=torch.float64))
    model, batches = mlp().double(), data(5)
    torch.testing.assert_close(grad_norm(model, batches, weighted), grad_norm(model, batches, CE))


def test_a_loss_that_torch_func_cannot_do() -> None:
    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return CE(outputs, target) * (2.0 if float(outputs.detach().sum()) > 1e9 else 1.0)

    with pytest.warns(UserWarning, match="one backward pass per sample"):
        check(mlp(), data(5), loss)


def test_outputs_and_targets_in_mappings() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"logits": self.a(x), "side": [self.b(x)], "name": "two"}

    def loss(outputs: Any, target: Any) -> Tensor:
        y, z = target.values() if isinstance(target, dict) else (target, target)
        return CE(outputs["logits"], y) + F.mse_loss(outputs["side"][0][:, 0], z.double())

    model = Two().double()
    x, y = data(4)[0]
    expected = oracle.loop(model, [(x, y)], loss)
    found = grad_norm(model, [[x, {"y": y, "z": y}]], loss)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("names", [["0.weight"], ["3.bias"], ["0.bias", "1.weight", "3.weight"]])
def test_some_parameters(names: list[str]) -> None:
    check(mlp(), data(5), CE, names)


def test_parameters_themselves_and_those_that_require_a_gradient() -> None:
    model, batches = mlp().double(), data(5)
    expected = grad_norm(model, batches, CE, parameters=["3.weight", "3.bias"])
    assert torch.equal(grad_norm(model, batches, CE, parameters=model[3].parameters()), expected)
    model.requires_grad_(False)
    model[3].requires_grad_(True)
    assert torch.equal(grad_norm(model, batches, CE), expected)
    assert [p.requires_grad for p in model.parameters()] == 4 * [False] + 2 * [True]


def test_either_name_of_a_tied_parameter() -> None:
    model = oracle.LanguageModel()
    batches = [(torch.randint(11, (4, 5)), torch.randint(11, (4, 5)))]
    names = ["embedding.weight"], ["head.weight"]
    one, other = (grad_norm(model, batches, oracle.next_token, parameters=name) for name in names)
    assert torch.equal(one, other)


@pytest.mark.parametrize("memory", [1, 10_000, 2**28])
def test_memory_changes_nothing(memory: int) -> None:
    for model, batches, loss in (
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(144, 3)), data(2, 8, 8), CE),
        (oracle.Prompted(), data(5, 4), CE),
        (oracle.LanguageModel(), [(torch.randint(11, (7, 6)),) * 2], oracle.next_token),
    ):
        model.double()
        expected = grad_norm(model, batches, loss)
        found = grad_norm(model, batches, loss, memory=memory)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sizes", [[7], [1, 6], [1, 1, 5], [2, 2, 2, 1], 7 * [1]])
def test_how_samples_are_batched_changes_nothing(sizes: list[int]) -> None:
    model = mlp().double()
    x, y = torch.randn(7, 5, dtype=torch.float64), torch.randint(3, (7,))
    found = grad_norm(model, iter(list(zip(x.split(sizes), y.split(sizes), strict=True))), CE)
    torch.testing.assert_close(found, oracle.loop(model, [(x, y)], CE), rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_types(dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    x, y = torch.randn(6, 5, dtype=dtype), torch.randint(3, (6,))
    found = grad_norm(model, [(x, y)], CE)
    assert found.dtype == torch.float32
    exact = oracle.loop(copy.deepcopy(model).double(), [(x.double(), y)], CE)
    tolerance = 1e-5 if dtype is torch.float32 else 0.05
    torch.testing.assert_close(found, exact.float(), rtol=tolerance, atol=0)


def test_gradients_whose_squares_overflow_in_half_precision() -> None:
    model = nn.Linear(4, 3).half()
    x, y = torch.full((2, 4), 500.0).half(), torch.tensor([0, 1])
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    # Odds of a third each; the features are 1000 long, and 1 for the bias.
    error = (2 / 3) ** 0.5
    expected = torch.full((2,), error * (1000**2 + 1) ** 0.5)
    torch.testing.assert_close(grad_norm(model, [(x, y)], CE), expected, rtol=1e-3, atol=0)


def test_autocast_and_inference_mode_outside_do_not_matter() -> None:
    model, batch = mlp(), (torch.randn(6, 5), torch.randint(3, (6,)))
    expected = grad_norm(model, [batch], CE)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        made_inside = (batch[0] + 0, batch[1] + 0)
        assert torch.equal(grad_norm(model, [made_inside], CE), expected)
    with torch.no_grad():
        assert torch.equal(grad_norm(model, [batch], CE), expected)


def test_a_model_that_works_in_place_on_its_input() -> None:
    class Shifted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.sub_(1.0))

    batches = data(5)
    before = batches[0][0].clone()
    check(Shifted(5, 3), batches)
    assert torch.equal(batches[0][0], before)


@pytest.mark.parametrize("at", [0, 1, 5])
def test_error_not_finite(at: int) -> None:
    x, y = torch.randn(6, 5), torch.randint(3, (6,))
    x[at, 2] = torch.nan
    with pytest.raises(ValueError, match=rf"must be finite, got a loss of nan .* sample {at}\."):
        grad_norm(mlp(), zip(x.split(4), y.split(4), strict=True), CE)


def test_dropout_of_whole_samples_is_off() -> None:
    model = nn.Sequential(nn.Linear(5, 3), nn.FeatureAlphaDropout(0.5))
    assert len(grad_norm(model, data_float(), EACH)) == 6


def contrast(outputs: Tensor, _: Tensor) -> Tensor:
    return F.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)))


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, track_running_stats=False)), EACH),
        (mlp(), contrast),
        (mlp(), lambda z, y: EACH(z - z.mean(0), y)),
    ],
    ids=["batch statistics", "contrastive", "centred"],
)
def test_error_samples_that_depend_on_each_other(model: nn.Module, loss: Any) -> None:
    torch.manual_seed(0)  # two samples of the same loss, one at a time and together, show nothing
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    with pytest.raises(ValueError, match=r"must depend on that sample alone|channel when training"):
        grad_norm(model, data_float(), loss)


def data_float() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(6, 5), torch.randint(3, (6,)))]


class Aside(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), self.weight.square().sum()


class Noisy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.5, training=True))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": Noisy(5, 3), "loss_fn": EACH}, "randomness in eval mode"),
        (
            {"loss_fn": lambda z, y: F.mse_loss(z, z.detach() + 1, reduction="none")},
            r"got \[1, 3\] for B = 1",
        ),
        ({"parameters": []}, "must name at least one parameter, got none"),
        ({"parameters": "0.weight"}, "must be an iterable of names, got the string '0.weight'"),
        ({"parameters": ["0.wieght"]}, "got '0.wieght'; it has 0.weight, 0.bias, 1.weight"),
        ({"parameters": [nn.Parameter(torch.ones(2))]}, r"got a tensor \[2\] that is not one"),
        ({"model": mlp().requires_grad_(False)}, "got none that requires a gradient"),
        ({"batches": []}, "at least one batch"),
        ({"batches": [torch.ones(2, 5)]}, r"pairs \(inputs, target\), got Tensor"),
        ({"batches": [(1, 2, 3)]}, r"got tuple of 3"),
        ({"batches": [(torch.ones(2, 5), torch.arange(3))]}, r"got shape \[3\] next to 2 samples"),
        ({"batches": [(torch.ones(2, 5), torch.tensor(1))]}, "samples along its first axis"),
        ({"batches": [(torch.ones(0, 5), torch.zeros(0).long())]}, "samples along its first axis"),
        ({"memory": 0}, "`memory` must be a positive number of bytes, got 0"),
    ],
)
def test_error(change: dict[str, Any], words: str) -> None:
    given = {"model": mlp(), "batches": data_float(), "loss_fn": CE} | change
    with pytest.raises(ValueError, match=words):
        grad_norm(**given)


def test_error_loss_that_is_no_tensor() -> None:
    with pytest.raises(TypeError, match="`loss_fn` must return a tensor, got float"):
        grad_norm(mlp(), data_float(), lambda z, y: 0.0)


@pytest.mark.parametrize("bias", [True, False])
def test_last_layer(bias: bool) -> None:
    model = mlp(bias=bias).double()
    batches = data(5)
    model.eval()
    for x, y in batches:
        features = model[:-1](x)
        found = last_layer_grad_norm(model(x), y, features, bias=bias)
        expected = grad_norm(model, [(x, y)], CE, parameters=model[3].parameters())
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
        assert not found.requires_grad


def test_last_layer_errors() -> None:
    logits, target = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"`features` must be \[B, D\] with B = 2 .* got \[3, 4\]"):
        last_layer_grad_norm(logits, target, torch.zeros(3, 4))
    with pytest.raises(TypeError, match="`features` must be floating"):
        last_layer_grad_norm(logits, target, torch.zeros(2, 4).long())
    with pytest.raises(ValueError, match="target"):
        last_layer_grad_norm(logits, target[:1], torch.zeros(2, 4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_are_brought_to_the_gpu_and_its_random_state_stays() -> None:
    model, batches = oracle.settled(mlp()).double().cuda(), data(5)
    state = torch.cuda.get_rng_state()
    found = grad_norm(model, batches, CE)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    there = [(x.cuda(), y.cuda()) for x, y in batches]
    torch.testing.assert_close(found, oracle.loop(model, there, CE), rtol=1e-10, atol=0)
