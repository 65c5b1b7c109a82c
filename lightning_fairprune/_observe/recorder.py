"""Records Dynamics during training: the running epoch on the device, finished ones on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_fairprune._files import pack_bits, unpack_bits
from lightning_fairprune._model.losses import IGNORED
from lightning_fairprune._observe.moves import MOVE, Moves
from lightning_fairprune._observe.positions import sample_labels, sample_signals
from lightning_fairprune.records.dynamics import Dynamics

_HOST_DTYPE = {
    "correct": torch.bool,
    "loss": torch.float32,
    "margin": torch.float32,
    "rival": torch.float32,
    MOVE: torch.float32,
}
_UNSEEN = -1
_ENDLESS = 1e4  # nats: a probability of 0

# Batches are buffered and computed together, because a dozen tensor functions on a small batch cost
# mostly overhead. At most so many batches or logits are buffered.
_MOST_BATCHES, _MOST_LOGITS = 16, 1 << 22


class EpochRecorder:
    """Per-sample signals of the running epoch and of the epochs before it.

    The device holds one value per sample and signal, the label and a flag, in the narrowest types:
    at most 28 bytes a sample, besides the logits of at most sixteen batches, and 4 bytes a class for the
    signal `move`. A finished epoch moves to host memory. Recording copies nothing to the host and never waits for the device.

    Args:
        num_samples: N of the training set.
        names: the signals to record, from :mod:`lightning_fairprune.signals`, or `move`; none for labels only.
        besides: signals to record besides, of which any value is welcome: what is not finite becomes `_ENDLESS`.
        grouped: whether every sample has a group id.
        device: of the training step.
    """

    def __init__(
        self,
        num_samples: int,
        names: Sequence[str] = (),
        *,
        besides: Sequence[str] = (),
        grouped: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self._wanted = tuple(names)
        self.names = (*names, *(name for name in besides if name not in names))
        self.num_samples = num_samples
        self.target = torch.full((num_samples,), _UNSEEN, dtype=torch.int64)
        self.group = self.target.clone() if grouped else None
        self.num_classes = 0
        self._labels_missing = True
        self._rows: dict[str, list[Tensor]] = {name: [] for name in self.names}
        self._observed: list[Tensor] = []
        self._now: dict[str, Tensor] = {}
        self._waiting: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []
        self._waiting_logits = 0
        self._moves = Moves(num_samples) if MOVE in self.names else None
        self.to(device)

    def to(self, device: torch.device | str) -> None:
        """Moves the buffers of the running epoch, or allocates them."""
        if not self._now:
            dtypes = {"target": torch.int32, "seen": torch.uint8}
            for name in self.names:
                dtype = _HOST_DTYPE.get(name, torch.float16)
                dtypes[name] = torch.uint8 if dtype is torch.bool else dtype
            if self.group is not None:
                dtypes["group"] = torch.int32
            self._now = {
                name: torch.zeros(self.num_samples, dtype=dtype, device=device)
                for name, dtype in dtypes.items()
            }
        self._now = {name: buffer.to(device) for name, buffer in self._now.items()}
        if self._moves is not None:
            self._moves.to(device)

    def release(self) -> None:
        """Frees the device memory and keeps finished epochs."""
        self._now = {}
        if self._moves is not None:
            self._moves.release()

    @property
    def device_bytes(self) -> int:
        """Size of the buffers on the device."""
        moves = 0 if self._moves is None else self._moves.device_bytes
        return moves + sum(buffer.nbytes for buffer in self._now.values())

    @property
    def needed(self) -> bool:
        """Whether anything is left to record."""
        return bool(self.names) or self._labels_missing

    def update(
        self, indices: Tensor, logits: Tensor, target: Tensor, group: Tensor | None = None
    ) -> None:
        """Records logits [B, C, ...], targets [B, ...] and the int64 [B] sample indices and groups of a batch.

        A sample with the target `IGNORED` has no class. One with several positions has class 0 and the mean of
        their signals.
        """
        if len(logits) != len(indices):
            raise ValueError(
                f"the collate function returned {len(logits)} samples for {len(indices)} indices: "
                "it must neither drop nor repeat samples, or their indices are unknown."
            )
        self.num_classes = 1 if target.ndim > 1 else logits.shape[1]
        # Copies, because a compiled step or a loader may reuse the memory for the next batch.
        group = None if group is None else group.clone()
        logits = logits.detach().clone() if self.names else logits.detach()[:0]
        self._waiting.append((indices, logits, target.clone(), group))
        self._waiting_logits += logits.numel()
        full = len(self._waiting) >= _MOST_BATCHES or self._waiting_logits >= _MOST_LOGITS
        if full or target.ndim > 1:  # whose length may change from batch to batch
            self._compute()

    def _compute(self) -> None:
        if not self._waiting:
            return
        indices, logits, target, *group = (
            torch.cat([value for value in column if value is not None])
            for column in zip(*self._waiting, strict=True)
            if column[0] is not None
        )
        self._waiting, self._waiting_logits = [], 0
        now = self._now
        with torch.no_grad():
            now["target"].index_copy_(0, indices, sample_labels(target).to(torch.int32))
            if group:
                now["group"].index_copy_(0, indices, group[0].to(torch.int32))
            if self.names:
                # A label out of range must not crash the device; finish_epoch raises for it.
                of_batch = [name for name in self.names if name != MOVE]
                values = sample_signals(of_batch, logits, target)
                if self._moves is not None:
                    values[MOVE] = self._moves.update(indices, logits)
                for name, value in values.items():
                    now[name].index_copy_(0, indices, value.to(now[name].dtype))
            now["seen"].index_fill_(0, indices, 1)

    def finish_epoch(
        self, epoch: int, reduce_sum: Callable[[Tensor], Tensor] = lambda tensor: tensor
    ) -> None:
        """Closes the running epoch: averages it over the ranks and moves it to the host.

        Raises:
            ValueError: If an observed value is not finite, a label is out of range, or a sample's
                label has changed.
        """
        self._compute()
        total = {name: reduce_sum(buffer) for name, buffer in self._reducible().items()}
        seen = total.pop("seen").cpu()
        observed = seen > 0
        if not observed.any():
            return
        mean = {name: (value.cpu() / seen.clamp(min=1)) for name, value in total.items()}
        self._learn_labels("target", mean, observed, epoch)
        if self.group is not None:
            self._learn_labels("group", mean, observed, epoch)
        for name in self.names:
            row = mean[name]
            if name not in self._wanted:
                row = row.nan_to_num(_ENDLESS, posinf=_ENDLESS, neginf=-_ENDLESS)
            bad = observed & ~row.isfinite()
            if bad.any():
                first = int(bad.nonzero()[0])
                raise ValueError(
                    f"`{name}` is {row[first].item()} for {int(bad.sum())} samples in epoch {epoch}, "
                    f"first for sample {first}: the model's logits are not finite there; lower the "
                    "learning rate or check that sample."
                )
            if _HOST_DTYPE.get(name) is torch.bool:
                self._rows[name].append(row > 0.5)
            else:
                row = torch.where(observed, row, torch.nan)
                self._rows[name].append(row.to(_HOST_DTYPE.get(name, torch.float16)))
        if self._moves is not None:
            self._moves.finish_epoch(seen, reduce_sum)
        if self.names:
            self._observed.append(observed)
        for buffer in self._now.values():
            buffer.zero_()

    def _reducible(self) -> dict[str, Tensor]:
        # Sums over ranks need wider types.
        wide = {"target": torch.float64, "group": torch.float64}
        return {
            name: buffer.to(wide.get(name, torch.float32)) for name, buffer in self._now.items()
        }

    def _learn_labels(
        self, name: str, mean: Mapping[str, Tensor], observed: Tensor, epoch: int
    ) -> None:
        known: Tensor = getattr(self, name)
        label = mean[name].round().long()
        limit = self.num_classes if name == "target" else None
        bad = observed & ((label < 0) | (label >= limit if limit else torch.zeros_like(observed)))
        if limit:
            bad &= label != IGNORED
        if bad.any():
            first = int(bad.nonzero()[0])
            bounds = f"in [0, {limit})" if limit else "0 or more"
            raise ValueError(
                f"every {name} must be {bounds}, got {int(label[first])} for sample {first} "
                f"({int(bad.sum())} samples in epoch {epoch}): number them from 0, and leave samples "
                "to be ignored out of the training set."
            )
        changed = observed & (known != _UNSEEN) & (known != label)
        if changed.any():
            first = int(changed.nonzero()[0])
            raise ValueError(
                f"the {name} of {int(changed.sum())} samples changed in epoch {epoch}, first for "
                f"sample {first} from {int(known[first])} to {int(label[first])}: either the "
                "training set has changed since the start of training, or the loss does not get the "
                "samples' own labels (then return 'logits' and 'target' from training_step)."
            )
        setattr(self, name, torch.where(observed, label, known))
        # Cached, because every step reads it.
        self._labels_missing = bool((self.target == _UNSEEN).any())

    def dynamics(self) -> Dynamics:
        """Returns the recorded signals of the finished epochs."""
        return Dynamics(
            target=self.target,
            signals={name: torch.stack(rows) for name, rows in self._rows.items() if rows},
            group=self.group,
            **({"observed": torch.stack(self._observed)} if self._observed else {}),
        )

    def state_dict(
        self, reduce_sum: Callable[[Tensor], Tensor] = lambda tensor: tensor
    ) -> dict[str, Any]:
        """Returns CPU tensors and primitives, with the means of the running epoch over the ranks."""
        self._compute()
        running = {name: reduce_sum(buffer) for name, buffer in self._reducible().items()}
        narrow = self.num_classes <= 2**15
        return {
            "names": list(self.names),
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "target": self.target.to(torch.int16 if narrow else torch.int32),
            "group": None if self.group is None else self.group.to(torch.int32),
            "rows": {
                name: [pack_bits(row) if row.dtype == torch.bool else row for row in rows]
                for name, rows in self._rows.items()
            },
            "observed": [pack_bits(row) for row in self._observed],
            "running": self._means(running) if running and running["seen"].any() else None,
            "moves": {}
            if self._moves is None or not running
            else self._moves.state_dict(running["seen"], reduce_sum),
        }

    def _record_only_wanted(self) -> None:
        for name in set(self.names) - set(self._wanted):
            del self._rows[name]
            self._now.pop(name, None)
        self.names = self._wanted

    def _means(self, total: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # In the types of the buffers, a third of the size.
        seen = total["seen"]
        means = {name: value / seen.clamp(min=1) for name, value in total.items() if name != "seen"}
        means["seen"] = seen > 0
        return {name: value.to(self._now[name].dtype).cpu() for name, value in means.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`; signals and samples must be the same."""
        if state["num_samples"] != self.num_samples:
            raise ValueError(
                f"the checkpoint was written with {state['num_samples']} training samples, the "
                f"training set now has {self.num_samples}: resume with the same data."
            )
        if tuple(state["names"]) == self._wanted:
            self._record_only_wanted()  # the checkpoint of an earlier version
        elif tuple(state["names"]) != self.names:
            raise ValueError(
                f"the checkpoint recorded the signals {list(state['names'])}, the score now needs "
                f"{list(self.names)}: resume with the same score."
            )
        self.num_classes = state["num_classes"]
        self.target = state["target"].long()
        self._labels_missing = bool((self.target == _UNSEEN).any())
        if self.group is not None and state["group"] is not None:
            self.group = state["group"].long()
        n = self.num_samples
        self._rows = {
            name: [unpack_bits(row, n) if row.dtype == torch.uint8 else row for row in rows]
            for name, rows in state["rows"].items()
        }
        self._observed = [unpack_bits(row, n) for row in state["observed"]]
        if state["running"] is not None:
            # Every rank loads the means over all, so they stay the means. An epoch visits a sample once,
            # so later steps do not overwrite them.
            for name, buffer in self._now.items():
                buffer.copy_(state["running"][name])
        if self._moves is not None:
            device = self._now["seen"].device if self._now else "cpu"
            self._moves.load_state_dict(state["moves"], device)
