"""A hundred models and losses: every norm is that of the sample alone, or the call is refused with the cause."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import oracles_gradients as oracle
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from lightning_fairprune.gradients import grad_norm

CE = nn.CrossEntropyLoss()
DTYPE = torch.float64


class Net(nn.Module):
    """A model that is one function of itself and its input."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def lin(inputs: int = 4, outputs: int = 3, **options: Any) -> nn.Linear:
    return nn.Linear(inputs, outputs, **options)


def par(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def lengths(x: Tensor) -> Tensor:
    """Between 1 and T, by the first value of each sample."""
    return (x[:, 0, 0].abs() * 3).long().clamp(1, x.shape[1])


# Models that put samples in another order.


def sorts(m: Any, x: Tensor) -> Tensor:
    order = x[:, 0].argsort()
    return m.b(m.a(x[order]).tanh())[order.argsort()]


def gathers(m: Any, x: Tensor) -> Tensor:
    order = x[:, :1].argsort(0).expand_as(x)
    return m.b(torch.zeros_like(x).scatter(0, order, m.a(x.gather(0, order))).tanh())


def reverses(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x.flip(0)).tanh().flip(0))


def rolls(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x.roll(1, 0)).tanh().roll(-1, 0))


def ranks(m: Any, x: Tensor) -> Tensor:
    keys, order = x.norm(dim=1).sort(descending=True)
    return m.b((m.a(x[order]) * keys[:, None]).tanh()).index_select(0, order.argsort())


def permutes(m: Any, x: Tensor) -> Tensor:
    order = torch.arange(len(x)).flip(0)
    return m.b(m.a(x[order]).tanh())[order]


def packed(m: Any, x: Tensor) -> Tensor:
    inside = pack_padded_sequence(m.a(x), lengths(x), batch_first=True, enforce_sorted=False)
    return m.b(m.r(inside)[1][0][-1])


def packed_and_padded(m: Any, x: Tensor) -> Tensor:
    inside = pack_padded_sequence(m.a(x), lengths(x), batch_first=True, enforce_sorted=False)
    return m.b(pad_packed_sequence(m.r(inside)[0], batch_first=True)[0].sum(1))


def packed_linear(m: Any, x: Tensor) -> Tensor:
    inside = pack_padded_sequence(x, lengths(x), batch_first=True, enforce_sorted=False)
    inside = inside._replace(data=m.a(inside.data).tanh())
    return m.b(pad_packed_sequence(inside, batch_first=True)[0].sum(1))


def sorted_lstm(m: Any, x: Tensor) -> Tensor:
    order = lengths(x).argsort(descending=True)
    return m.b(m.r(m.a(x[order]))[0][:, -1][order.argsort()])


# Layers that are used for some samples only.


def masked(m: Any, x: Tensor) -> Tensor:
    y, rows = m.b(x), x[:, 0] > 0
    return y.index_put((rows,), m.b(m.a(x[rows]).tanh()))


def where(m: Any, x: Tensor) -> Tensor:
    return m.b(torch.where(x[:, :1] > 0, m.a(x), x).tanh())


def early_exit(m: Any, x: Tensor) -> Tensor:
    y = m.b(x)
    return y if bool((y.softmax(1).amax(1) > 0.5).all()) else y + m.b(m.a(x).tanh())


def selected(m: Any, x: Tensor) -> Tensor:
    rows = (x[:, 0] > 0).nonzero()[:, 0]
    return m.b(x).index_add(0, rows, m.b(m.a(x.index_select(0, rows))))


def soft_experts(m: Any, x: Tensor) -> Tensor:
    gates = m.a(x).softmax(1)
    return gates[:, :1] * m.b(x) + gates[:, 1:2] * m.b(x.square()) + gates[:, 2:3] * m.b(-x)


def top_expert(m: Any, x: Tensor) -> Tensor:
    return m.w[x[:, :2].argmax(1)].bmm(m.a(x)[:, :, None])[:, :, 0] + m.b(x)


def capacity(m: Any, x: Tensor) -> Tensor:
    """Slots of an expert, as many as samples, filled by those that it takes, first come first served."""
    mine = x[:, 0] > 0
    order = (~mine).long().argsort(stable=True)
    slots = x[order] * mine[order][:, None]
    return m.b(x + m.a(slots)[order.argsort()] * mine[:, None])


def skips(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).tanh() if float(x.mean()) > 0 else x)


def half(m: Any, x: Tensor) -> Tensor:
    y = m.a(x[: (len(x) + 1) // 2])
    return m.b(torch.cat([y, x[len(y) :]]).tanh())


# Models that mix samples: each sample alone is exact, or the mixing is refused.


def minus_mean(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x - x.mean(0)).tanh() + 1)


def mixup(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(0.7 * x + 0.3 * x.flip(0)).tanh())


def batch_attention(m: Any, x: Tensor) -> Tensor:
    return m.b((x @ x.T).softmax(1) @ m.a(x))


def scaled_by_batch(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x / x.abs().max()))


def stores(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y = y + m.bank.mean(0)
    m.bank.copy_(y.detach().mean(0).expand_as(m.bank))
    return m.b(y.tanh())


def keeps(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    before = getattr(m, "before", None)
    m.before = y.detach()
    return m.b(y if before is None else y + before.mean(0))


def counts(m: Any, x: Tensor) -> Tensor:
    m.calls += 1
    return m.b(m.a(x).tanh() * m.calls)


def moving_average(m: Any, x: Tensor) -> Tensor:
    m.average.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
    return m.b(m.a(x - m.average))


def draws(m: Any, x: Tensor) -> Tensor:
    torch.rand(1)
    return m.b(m.a(x).tanh())


def rarely_random(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x) + (x.abs() > 2) * torch.rand(4))  # not in the first two samples


def shared_dropout(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x) * F.dropout(torch.ones(4), 0.5))


def noise(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x) + 0.1 * torch.randn_like(x))


# Shapes, shared weights, weights outside of layers.


def flat_time(m: Any, x: Tensor) -> Tensor:
    b, t = x.shape[:2]
    return m.b(m.a(x.reshape(b * t, -1)).tanh().reshape(b, t, -1).mean(1))


def transposed(m: Any, x: Tensor) -> Tensor:
    return m.b(m.r(m.a(x.transpose(0, 1)))[0][-1])


def sequence_first_norm(m: Any, x: Tensor) -> Tensor:
    return m.b(m.n(m.a(x.transpose(0, 1))).mean(0))


def frames(m: Any, x: Tensor) -> Tensor:
    return m.b(m.c(x.flatten(0, 1)).relu().mean((2, 3)).unflatten(0, x.shape[:2]).sum(1))


def views(m: Any, x: Tensor) -> Tensor:
    return m.b(torch.cat([m.a(x), m.a(-x)]).tanh().view(2, len(x), 4).sum(0))


def chunked(m: Any, x: Tensor) -> Tensor:
    return m.b(torch.cat([m.a(part).tanh() for part in x.split(2)]))


def one_at_a_time(m: Any, x: Tensor) -> Tensor:
    return m.b(torch.stack([m.a(row).tanh() for row in x]))


def shared(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(m.a(x).tanh()).tanh() + m.a(-x))


def functional(m: Any, x: Tensor) -> Tensor:
    return F.linear(F.linear(x, m.w, m.v).tanh(), m.b.weight, m.b.bias)


def product(m: Any, x: Tensor) -> Tensor:
    return m.b((x @ m.w.T + m.v).tanh())


def einsum(m: Any, x: Tensor) -> Tensor:
    return m.b(torch.einsum("bi,oi->bo", x, m.w).tanh())


def layer_and_raw(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).tanh() @ m.a.weight + m.a.bias)


def of_weights(m: Any, x: Tensor) -> Tensor:
    w = m.w - m.w.mean(1, keepdim=True)
    return m.b(F.linear(x, w / w.norm(dim=1, keepdim=True)).tanh())


def hyper(m: Any, x: Tensor) -> Tensor:
    return m.b(torch.bmm(m.a(x).view(-1, 2, 2), x.view(-1, 2, 2)).flatten(1))


def cosine(m: Any, x: Tensor) -> Tensor:
    return 5 * F.linear(F.normalize(m.a(x)), F.normalize(m.b.weight))


def scaled_conv(m: Any, x: Tensor) -> Tensor:
    return m.b(F.conv2d(x, m.c.weight * m.s, m.c.bias).tanh().flatten(1))


def unrolled(m: Any, x: Tensor) -> Tensor:
    h = x.new_zeros(len(x), 4)
    for t in x.unbind(1):
        h = m.r(t, h)
    return m.b(h)


def lstm_cell(m: Any, x: Tensor) -> Tensor:
    h = c = x.new_zeros(len(x), 4)
    for t in x.unbind(1):
        h, c = m.r(t, (h, c))
    return m.b(h + c)


def lora(m: Any, x: Tensor) -> Tensor:
    return m.b((m.a(x) + 0.5 * (x @ m.down @ m.up)).tanh())


def gpt2_layer(m: Any, x: Tensor) -> Tensor:
    y = torch.addmm(m.v, x.reshape(-1, 4), m.w)
    return m.b(y.view(x.shape).tanh().mean(1))


def layer_scale(m: Any, x: Tensor) -> Tensor:
    return m.b(x + m.v * m.a(x).tanh())


def detached(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).detach() + m.a(x).tanh() * m.a.weight.detach().sum())


def no_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = m.a(x)
    return m.b(x)


def in_place(m: Any, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0] = 1.0
    return m.b(F.relu(m.a(x), inplace=True) + F.elu(m.a(-x), inplace=True).add(x))


def saved(m: Any, x: Tensor) -> Tensor:
    return m.b(checkpoint(m.a, x, use_reentrant=False).tanh())


def inner_gradient(m: Any, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(m.a(x).tanh().sum(), x, create_graph=True)
    return m.b(slope)


def inner_vmap(m: Any, x: Tensor) -> Tensor:
    return m.b(torch.vmap(m.a)(x).tanh())


def through_numpy(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x) * torch.from_numpy(x.detach().numpy().copy()))


def to_dtype(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x.to(m.a.weight.dtype)).view(-1, *m.a.bias.shape).tanh())


def autocast(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return m.b(m.a(x).tanh())


def bilinear(m: Any, x: Tensor) -> Tensor:
    return m.l(x, m.a(x))


def outputs_in_dict(m: Any, x: Tensor) -> dict[str, Tensor]:
    return {"logits": m.b(m.a(x).tanh()), "penalty": m.a.weight.square().sum()}


def tied(m: Any, x: Tensor) -> Tensor:
    return F.linear(m.e((x.abs() * 3).long().clamp(0, 5)).tanh().mean(1), m.e.weight)


def positions(m: Any, x: Tensor) -> Tensor:
    return m.b((m.a(x) + m.e(torch.arange(5)[None])).tanh().mean(1))


def one_norm_twice(m: Any, x: Tensor) -> Tensor:
    return m.b(m.n(m.a(m.n(x))).mean(1))


def bag_with_offsets(m: Any, x: Tensor) -> Tensor:
    tokens = (x.abs() * 3).long().clamp(0, 5)
    return m.b(m.e(tokens.flatten(), torch.arange(len(x)) * 5))


def bag(m: Any, x: Tensor) -> Tensor:
    return m.b(m.e((x.abs() * 3).long().clamp(0, 5)))


def words(m: Any, x: Tensor) -> Tensor:
    return m.b(m.e((x.abs() * 3).long().clamp(0, 5)).tanh().mean(1))


def attends(m: Any, x: Tensor) -> Tensor:
    return m.b(m.t(x, x, x, need_weights=False)[0].mean(1))


def attends_padded(m: Any, x: Tensor) -> Tensor:
    padding = torch.arange(x.shape[1]) >= lengths(x)[:, None]
    return m.b(m.t(x, x, x, key_padding_mask=padding)[0].mean(1))


def encodes(m: Any, x: Tensor) -> Tensor:
    return m.b(m.t(x).mean(1))


def sdpa(m: Any, x: Tensor) -> Tensor:
    q, k, v = (part.unsqueeze(1) for part in m.q(x).chunk(3, -1))
    return m.b(F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0].sum(1))


def images(m: Any, x: Tensor) -> Tensor:
    return m.b(m.c(x).tanh().flatten(1))


def pooled(m: Any, x: Tensor) -> Tensor:
    return m.b(m.c(x).tanh().mean((2, 3)))


def plain(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).tanh())


def ab(function: Callable[..., Any], **parts: Any) -> Callable[[], nn.Module]:
    """A model with a layer a of 4 x 4 and a layer b of 4 x 3."""
    return lambda: Net(function, **({"a": lin(4, 4), "b": lin()} | made(parts)))


def made(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: part() for name, part in parts.items()}


ONE, TIME, IMAGE, VIDEO = (4,), (5, 4), (4, 6, 6), (3, 4, 5, 5)
LSTM = {"r": lambda: nn.LSTM(4, 4, batch_first=True)}
W = {"w": lambda: par(4, 4), "v": lambda: par(4)}


def with_conv(make: Callable[[], nn.Module], size: int) -> Callable[[], nn.Module]:
    return lambda: Net(images, c=make(), b=lin(size))


def frozen() -> nn.Module:
    model = Net(plain, a=lin(4, 4), b=lin())
    model.a.weight.requires_grad_(False)
    return model


def tied_layers() -> nn.Module:
    model = Net(lambda m, x: m.b(m.c(m.a(x).tanh())), a=lin(4, 4), c=lin(4, 4), b=lin())
    model.c.weight = model.a.weight
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{f.__name__: (ab(f), ONE) for f in (sorts, gathers, reverses, rolls, ranks, permutes)},
    "packed LSTM": (ab(packed, **LSTM), TIME),
    "packed GRU": (
        ab(packed_and_padded, r=lambda: nn.GRU(4, 4, batch_first=True)),
        TIME,
    ),
    "linear layer on packed data": (ab(packed_linear), TIME),
    "LSTM sorted by length": (ab(sorted_lstm, **LSTM), TIME),
    **{f.__name__: (ab(f), ONE) for f in (masked, where, early_exit, selected, soft_experts)},
    "top expert": (ab(top_expert, w=lambda: par(2, 3, 4)), ONE),
    **{f.__name__: (ab(f), ONE) for f in (capacity, skips, half)},
    "experts by mask": (oracle.Experts, ONE),
    **{f.__name__: (ab(f), ONE) for f in (minus_mean, mixup, batch_attention, scaled_by_batch)},
    "BatchNorm without statistics": (
        ab(
            pooled,
            c=lambda: nn.Sequential(
                nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)
            ),
        ),
        IMAGE,
    ),
    "memory bank": (ab(stores, bank=lambda: torch.randn(2, 4)), ONE),
    "kept activations": (ab(keeps), ONE),
    "counter": (ab(counts, calls=lambda: torch.ones((), dtype=torch.long)), ONE),
    "moving average": (ab(moving_average, average=lambda: torch.zeros(4)), ONE),
    "shared dropout": (ab(shared_dropout), ONE),
    "noise": (ab(noise), ONE),
    "draws without effect": (ab(draws), ONE),
    "rarely random": (ab(rarely_random), ONE),
    "batch and time in one axis": (ab(flat_time), TIME),
    "time first": (ab(transposed, r=lambda: nn.GRU(4, 4)), TIME),
    "LayerNorm, time first": (ab(sequence_first_norm, n=lambda: nn.LayerNorm(4)), TIME),
    "frames of a video": (ab(frames, c=lambda: nn.Conv2d(4, 4, 3)), VIDEO),
    **{f.__name__: (ab(f), ONE) for f in (views, chunked, one_at_a_time, shared)},
    "tied layers": (tied_layers, ONE),
    "functional": (ab(functional, **W), ONE),
    "product": (ab(product, **W), ONE),
    "einsum": (ab(einsum, **W), ONE),
    "layer and raw": (ab(layer_and_raw), ONE),
    "function of weights": (ab(of_weights, **W), ONE),
    "hypernetwork": (ab(hyper), ONE),
    "cosine": (ab(cosine), ONE),
    "scaled convolution": (
        lambda: Net(scaled_conv, c=nn.Conv2d(4, 2, 3), s=par(2, 1, 1, 1), b=lin(32)),
        IMAGE,
    ),
    "RNN cell": (ab(unrolled, r=lambda: nn.RNNCell(4, 4)), TIME),
    "GRU cell": (ab(unrolled, r=lambda: nn.GRUCell(4, 4)), TIME),
    "LSTM cell": (ab(lstm_cell, r=lambda: nn.LSTMCell(4, 4)), TIME),
    "RNN by hand": (oracle.Recurrent, ONE),
    "LSTM": (lambda: nn.Sequential(oracle.Last(nn.LSTM(4, 4, 2, batch_first=True)), lin()), TIME),
    "LSTM both ways": (
        lambda: nn.Sequential(
            oracle.Last(nn.LSTM(4, 2, bidirectional=True, batch_first=True)), lin()
        ),
        TIME,
    ),
    "GRU": (lambda: nn.Sequential(oracle.Last(nn.GRU(4, 4, batch_first=True)), lin()), TIME),
    "RNN": (
        lambda: nn.Sequential(
            oracle.Last(nn.RNN(4, 4, nonlinearity="relu", batch_first=True)), lin()
        ),
        TIME,
    ),
    "LoRA": (ab(lora, down=lambda: par(4, 2), up=lambda: par(2, 4)), ONE),
    "GPT-2 layer": (ab(gpt2_layer, **W), TIME),
    "layer scale": (ab(layer_scale, **W), ONE),
    **{f.__name__: (ab(f), ONE) for f in (detached, no_gradients, in_place, saved)},
    **{f.__name__: (ab(f), ONE) for f in (inner_gradient, inner_vmap, through_numpy)},
    **{f.__name__: (ab(f), ONE) for f in (to_dtype, autocast)},
    "bilinear": (ab(bilinear, l=lambda: nn.Bilinear(4, 4, 3)), ONE),
    "tied embedding": (lambda: Net(tied, e=nn.Embedding(6, 4)), (5,)),
    "embedding": (ab(words, e=lambda: nn.Embedding(6, 4, padding_idx=-1)), (5,)),
    "sparse embedding": (ab(words, e=lambda: nn.Embedding(6, 4, sparse=True)), (5,)),
    "embedding, max_norm": (ab(words, e=lambda: nn.Embedding(6, 4, max_norm=1.0)), (5,)),
    "embedding by frequency": (
        ab(words, e=lambda: nn.Embedding(6, 4, scale_grad_by_freq=True)),
        (5,),
    ),
    "positions for all samples": (ab(positions, e=lambda: nn.Embedding(5, 4)), TIME),
    "one LayerNorm in two places": (ab(one_norm_twice, n=lambda: nn.LayerNorm(4)), TIME),
    "embedding bag with offsets": (ab(bag_with_offsets, e=lambda: nn.EmbeddingBag(6, 4)), (5,)),
    "embedding bag": (ab(bag, e=lambda: nn.EmbeddingBag(6, 4)), (5,)),
    "sparse embedding bag": (
        ab(bag, e=lambda: nn.EmbeddingBag(6, 4, sparse=True, mode="sum")),
        (5,),
    ),
    "attention": (ab(attends, t=lambda: nn.MultiheadAttention(4, 2, batch_first=True)), TIME),
    "attention with padding": (
        ab(attends_padded, t=lambda: nn.MultiheadAttention(4, 2, batch_first=True)),
        TIME,
    ),
    "attention, kdim": (
        ab(attends, t=lambda: nn.MultiheadAttention(4, 2, kdim=4, vdim=4, batch_first=True)),
        TIME,
    ),
    "transformer layer": (
        ab(encodes, t=lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)),
        TIME,
    ),
    "scaled dot products": (ab(sdpa, q=lambda: lin(4, 12)), TIME),
    "convolution": (with_conv(lambda: nn.Conv2d(4, 2, 3, 2, 1), 18), IMAGE),
    "depthwise convolution": (with_conv(lambda: nn.Conv2d(4, 8, 3, groups=4), 128), IMAGE),
    "transposed convolution": (with_conv(lambda: nn.ConvTranspose2d(4, 1, 2), 49), IMAGE),
    "PReLU": (lambda: nn.Sequential(lin(4, 4), nn.PReLU(4), lin()), ONE),
    "BatchNorm": (lambda: nn.Sequential(lin(4, 4), nn.BatchNorm1d(4), lin()), ONE),
    "GroupNorm": (
        with_conv(lambda: nn.Sequential(nn.Conv2d(4, 2, 3), nn.GroupNorm(1, 2)), 32),
        IMAGE,
    ),
    "InstanceNorm": (
        with_conv(lambda: nn.Sequential(nn.Conv2d(4, 2, 3), nn.InstanceNorm2d(2, affine=True)), 32),
        IMAGE,
    ),
    "RMSNorm": (lambda: nn.Sequential(lin(4, 4), nn.RMSNorm(4), lin()), ONE),
    "weight_norm": (lambda: nn.Sequential(parametrizations.weight_norm(lin(4, 4)), lin()), ONE),
    "spectral_norm": (lambda: nn.Sequential(parametrizations.spectral_norm(lin(4, 4)), lin()), ONE),
    "orthogonal": (lambda: nn.Sequential(parametrizations.orthogonal(lin(4, 4)), lin()), ONE),
    "frozen weight": (frozen, ONE),
    "scripted": (lambda: nn.Sequential(torch.jit.script(lin(4, 4)), nn.Tanh(), lin()), ONE),
    "compiled": (lambda: nn.Sequential(torch.compile(lin(4, 4), backend="eager"), lin()), ONE),
    "DataParallel": (lambda: nn.DataParallel(Net(plain, a=lin(4, 4), b=lin())), ONE),
}


def penalty(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, y: CE(z, y) + 0.1 * sum(p.square().sum() for p in model.parameters())


def angular(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, y: CE(z, y) + (model.b.weight[y] * z.new_ones(4)).sum(1).mean()


def given(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[nn.Module], Any]:
    return lambda model: loss


def weights() -> Tensor:
    return torch.tensor([1.0, 5.0, 0.1], dtype=DTYPE)


def contrast(z: Tensor, _: Tensor) -> Tensor:
    return F.cross_entropy(z @ z.T, torch.arange(len(z)))


def branching(z: Tensor, y: Tensor) -> Tensor:
    return CE(z, y) * (2.0 if float(z.detach().sum()) > 0 else 1.0)


LOSSES: dict[str, Callable[[nn.Module], Any]] = {
    "none": given(nn.CrossEntropyLoss(reduction="none")),
    "sum": given(nn.CrossEntropyLoss(reduction="sum")),
    "class weights": given(nn.CrossEntropyLoss(weights())),
    "class weights, sum": given(nn.CrossEntropyLoss(weights(), reduction="sum")),
    "smoothing": given(nn.CrossEntropyLoss(label_smoothing=0.1)),
    "ignored, sum": given(nn.CrossEntropyLoss(ignore_index=0, reduction="sum")),
    "ignored, none": given(nn.CrossEntropyLoss(ignore_index=0, reduction="none")),
    "ignored, mean": given(nn.CrossEntropyLoss(ignore_index=0)),
    "margin": given(nn.MultiMarginLoss()),
    "NLL": given(lambda z, y: F.nll_loss(z.log_softmax(1), y)),
    "one-hot": given(lambda z, y: F.mse_loss(z, F.one_hot(y, 3).to(z))),
    "focal": given(
        lambda z, y: ((1 - z.softmax(1)) * -z.log_softmax(1))[torch.arange(len(y)), y].mean()
    ),
    "batch mean removed": given(lambda z, y: CE(z - z.mean(0) + 0.1 * z, y)),
    "contrastive": given(contrast),
    "branches": given(branching),
    "hard examples": given(
        lambda z, y: F.cross_entropy(z, y, reduction="none").topk(1).values.sum()
    ),
    "weight decay": penalty,
    "weights of the last layer": angular,
    "random": given(lambda z, y: CE(F.dropout(z, 0.5), y)),
}

CASES = {
    **{name: (make, shape, given(CE)) for name, (make, shape) in MODELS.items()},
    **{f"loss: {name}": (ab(plain), ONE, loss) for name, loss in LOSSES.items()},
}
MIXED = (
    *("early_exit", "skips", "half", "minus_mean", "mixup", "batch_attention", "scaled_by_batch"),
    *("BatchNorm without statistics", "moving average", "shared dropout"),
    *("loss: contrastive", "loss: branches", "loss: random"),
)
REFUSED = {
    **dict.fromkeys(MIXED, "must depend on that sample alone"),
    "noise": "random",
    "rarely random": "random numbers change it",
    "loss: ignored, mean": "must be finite",  # 0 / 0 for a sample whose label is ignored
}


def alone(model: nn.Module, batches: list[Any], loss: Any) -> Tensor:
    """The loop over single samples, each starting with the model as it is."""
    start = {name: value.clone() for name, value in model.state_dict().items()}
    norms = []
    for x, y in batches:
        for i in range(len(y)):
            norms.append(oracle.loop(model, [(x[i : i + 1], y[i : i + 1])], loss))
            model.load_state_dict(start)
            vars(model).pop("before", None)
    return torch.cat(norms)


def verdict(name: str) -> str:
    """Returns what `grad_norm` did: rules, loop, refused and why; raises if a number is wrong."""
    make, shape, loss_of = CASES[name]
    torch.manual_seed(len(name))
    model = oracle.settled(make()).double()
    loss = loss_of(model)
    x, y = torch.randn(11, *shape, dtype=DTYPE), torch.randint(3, (11,))
    batches = list(zip(x.split(8), y.split(8), strict=True))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            found = grad_norm(model, batches, loss)
        except ValueError as error:
            return f"refused: {error}"
    torch.testing.assert_close(found, alone(model, batches, loss), rtol=1e-9, atol=1e-12)
    slow = [str(w.message) for w in seen if "one backward pass per sample" in str(w.message)]
    return f"exact, one by one: {slow[0]}" if slow else "exact, together"


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
@pytest.mark.parametrize("name", CASES)
def test_exact_or_refused(name: str) -> None:
    found = verdict(name)
    if name in REFUSED:
        assert found.startswith("refused")
        assert REFUSED[name] in found
    else:
        assert found.startswith("exact")


def test_at_least_a_hundred() -> None:
    assert len(CASES) >= 100
