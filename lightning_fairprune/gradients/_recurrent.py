"""Recurrent layers step by step, as linear layers, which have rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_State = tuple[Tensor, ...]


def _lstm_step(x: Tensor, h: Tensor, state: _State) -> _State:
    i, f, g, o = (x + h).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_step(x: Tensor, h: Tensor, state: _State) -> _State:
    (r, z, n), (hr, hz, hn) = x.chunk(3, -1), h.chunk(3, -1)
    n = (n + (r + hr).sigmoid() * hn).tanh()
    return (n + (z + hz).sigmoid() * (state[0] - n),)


def _tanh_step(x: Tensor, h: Tensor, state: _State) -> _State:
    return ((x + h).tanh(),)


def _relu_step(x: Tensor, h: Tensor, state: _State) -> _State:
    return ((x + h).relu(),)


_Step = Callable[[Tensor, Tensor, _State], _State]


def _cell(step: _Step) -> Callable[..., Any]:
    def cell(
        x: Tensor,
        hx: Any,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        state = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        new = step(F.linear(x, w_ih, b_ih), F.linear(state[0], w_hh, b_hh), state)
        return new if len(new) > 1 else new[0]

    return cell


def _layers(step: _Step) -> Callable[..., tuple[Tensor, ...]]:
    def layers(
        input: Tensor,
        hx: Any,
        params: Any,
        has_biases: Any,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, ...]:
        if isinstance(params, Tensor) or not isinstance(has_biases, bool):
            raise NotImplementedError("packed sequences have samples of any length")
        if train and dropout:
            raise NotImplementedError("dropout is random")
        x = input.transpose(0, 1) if batch_first else input
        states = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        ends: list[_State] = []
        weights = _by_direction(params, has_biases, num_layers, 1 + bidirectional)
        for k in range(num_layers):
            outputs = []
            for direction in range(1 + bidirectional):
                start = tuple(s[k * (1 + bidirectional) + direction] for s in states)
                output, end = _run(step, x, start, next(weights), backwards=direction == 1)
                outputs.append(output)
                ends.append(end)
            x = torch.cat(outputs, -1)
        return (x.transpose(0, 1) if batch_first else x, *map(torch.stack, zip(*ends, strict=True)))

    return layers


def _by_direction(
    params: Sequence[Tensor], biases: bool, layers: int, directions: int
) -> Iterator[Sequence[Tensor | None]]:
    """Yields w_ih, w_hh, b_ih, b_hh and, for an LSTM with projections, w_hr, of each layer and direction."""
    each = len(params) // (layers * directions)
    for start in range(0, len(params), each):
        w_ih, w_hh, *rest = params[start : start + each]
        b_ih, b_hh = rest[:2] if biases else (None, None)
        rest = rest[2 * biases :]
        yield w_ih, w_hh, b_ih, b_hh, rest[0] if rest else None


def _run(
    step: _Step, x: Tensor, state: _State, weights: Sequence[Any], *, backwards: bool
) -> tuple[Tensor, _State]:
    """Returns the outputs [T, n, H] of one direction and its last state."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    inputs = F.linear(x, w_ih, b_ih).unbind(0)
    outputs = []
    for t in reversed(inputs) if backwards else inputs:
        state = step(t, F.linear(state[0], w_hh, b_hh), state)
        if w_hr is not None:
            state = (F.linear(state[0], w_hr), *state[1:])
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state


UNROLLED: dict[Any, Callable[..., Any]] = {
    torch.lstm: _layers(_lstm_step),
    torch.gru: _layers(_gru_step),
    torch.rnn_tanh: _layers(_tanh_step),
    torch.rnn_relu: _layers(_relu_step),
    torch.lstm_cell: _cell(_lstm_step),
    torch.gru_cell: _cell(_gru_step),
    torch.rnn_tanh_cell: _cell(_tanh_step),
    torch.rnn_relu_cell: _cell(_relu_step),
}
