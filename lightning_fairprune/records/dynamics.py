"""The signals of every sample in a training run: one record, no arithmetic."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lightning_fairprune._files import (
    pack_bits,
    read_tensors,
    understanding,
    unpack_bits,
    write_tensors,
    write_whole,
)

_FORMAT = "lightning_fairprune.Dynamics"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_RESERVED = ("index", "target", "group", "observed")
_ROWS_PER_GROUP = 65_536  # of a Parquet file: bounds the memory for writing


@dataclass(frozen=True, slots=True, eq=False)
class Dynamics:
    """The signals of N samples in E epochs of training: the input of every score.

    Tensors are not copied, unless a value of an unobserved sample must become NaN.

    Attributes:
        target: True class of each sample, int64, [N]; -1 if it was never observed.
        signals: Per-sample values by name, [E, N] each. `correct` is bool, every other signal float16, bfloat16,
            float32 or float64, NaN where the sample was not observed. Names are those of `signals.__all__`,
            `move` (see `scores.tdds`) or any other identifier.
        group: Group of each sample (e.g. label x background), int64, [N], or None.
        observed: Whether a sample was observed in an epoch, bool, [E, N]; by default where no float signal is
            NaN. If given, a NaN of an observed sample is an error, and values of unobserved ones become NaN.

    Raises:
        ValueError: If shapes or devices differ, a name cannot be used, or an observed value is not finite.
        TypeError: If a dtype is not one of those above.

    Example:
        >>> seen = Dynamics(
        ...     target=torch.tensor([0, 1]),
        ...     signals={"p_true": torch.tensor([[0.25, torch.nan], [0.50, 0.75]])},
        ... )
        >>> seen
        Dynamics(num_samples=2, num_epochs=2, signals=['p_true'])
        >>> seen.observed
        tensor([[ True, False],
                [ True,  True]])
    """

    target: Tensor
    signals: Mapping[str, Tensor]
    group: Tensor | None = None
    observed: Tensor = field(default=None)  # type: ignore[assignment]  # None until __post_init__

    def __post_init__(self) -> None:
        _check_index("target", self.target)
        if self.group is not None:
            _check_index("group", self.group)
            _check_like("group", self.group, self.target.shape, self.target.device)
        signals = {name: values.detach() for name, values in self.signals.items()}
        for name, values in signals.items():
            _check_signal(name, values)

        observed = cast("Tensor | None", self.observed)
        first = next(iter(signals.values()), None) if observed is None else observed
        num_epochs = 0 if first is None else first.shape[0] if first.ndim else 1
        shape = torch.Size([num_epochs, *self.target.shape])
        for name, values in signals.items():
            _check_like(f"signals[{name!r}]", values, shape, self.target.device)

        if observed is None:
            observed = torch.ones(shape, dtype=torch.bool, device=self.target.device)
            for values in signals.values():
                observed &= ~values.isnan()
        elif observed.dtype != torch.bool:
            raise TypeError(f"`observed` must be bool, got {observed.dtype}.")
        else:
            _check_like("observed", observed, shape, self.target.device)

        for name, values in signals.items():
            if values.is_floating_point():
                _check_finite(name, values, observed)
                if not (observed | values.isnan()).all():
                    signals[name] = values.masked_fill(~observed, torch.nan)
        object.__setattr__(self, "signals", signals)
        object.__setattr__(self, "observed", observed)

    def __repr__(self) -> str:
        return (
            f"Dynamics(num_samples={self.num_samples}, num_epochs={self.num_epochs}, "
            f"signals={list(self.signals)})"
        )

    @property
    def num_samples(self) -> int:
        """Number of samples, N."""
        return self.target.shape[0]

    @property
    def num_epochs(self) -> int:
        """Number of recorded epochs, E."""
        return self.observed.shape[0]

    def signal(self, name: str) -> Tensor:
        """Return a recorded signal in a type for arithmetic.

        Args:
            name: A recorded signal.

        Returns:
            float32 with NaN where unobserved, or bool for `correct` (read it with `observed`), [E, N].

        Raises:
            ValueError: If the signal was not recorded.

        Example:
            >>> half = torch.tensor([[0.5, 0.25]], dtype=torch.float16)
            >>> seen = Dynamics(target=torch.tensor([0, 1]), signals={"el2n": half})
            >>> seen.signal("el2n")
            tensor([[0.5000, 0.2500]])
        """
        try:
            values = self.signals[name]
        except KeyError:
            recorded = ", ".join(map(repr, self.signals)) or "no signal"
            raise ValueError(f"{name!r} was not recorded: there is {recorded}.") from None
        return values if values.dtype == torch.bool else values.float()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a safetensors file, whole or not at all; dtypes stay, booleans become bits.

        Example:
            >>> import tempfile
            >>> seen = Dynamics(target=torch.tensor([0]), signals={"loss": torch.tensor([[2.5]])})
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     seen.save(f"{folder}/dynamics.safetensors")
            ...     Dynamics.load(f"{folder}/dynamics.safetensors").signal("loss")
            tensor([[2.5000]])
        """
        tensors = {"target": self.target, "observed": pack_bits(self.observed)}
        if self.group is not None:
            tensors["group"] = self.group
        for name, values in self.signals.items():
            packed = pack_bits(values) if values.dtype == torch.bool else values
            tensors[f"signals/{name}"] = packed
        write_tensors(path, _FORMAT, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Dynamics:
        """Return what `save` wrote, on the CPU and bit for bit.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or not written by `save`.
        """
        tensors, _ = read_tensors(path, _FORMAT)
        with understanding(path):
            return cls._from_tensors(tensors)

    @classmethod
    def _from_tensors(cls, tensors: dict[str, Tensor]) -> Dynamics:
        signals = {}
        for key in [key for key in tensors if key.startswith("signals/")]:
            signals[key.removeprefix("signals/")] = tensors.pop(key)
        missing = {"target", "observed"} - tensors.keys()
        foreign = tensors.keys() - {"target", "observed", "group"}
        if missing or foreign:
            raise ValueError(
                "it must hold `target`, `observed`, maybe `group` and signals, "
                f"but lacks {sorted(missing)} and also has {sorted(foreign)}."
            )
        n = tensors["target"].numel()
        if "correct" in signals:
            signals["correct"] = unpack_bits(signals["correct"], n)
        return cls(
            target=tensors["target"],
            signals=signals,
            group=tensors.get("group"),
            observed=unpack_bits(tensors["observed"], n),
        )

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet table with one row per sample, whole or not at all.

        Columns: `index`, `target`, `group` if there is one, and for each signal a list of E values, null where the
        sample was not observed.

        Raises:
            ImportError: If pyarrow is not installed.
        """
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise ImportError(
                "`to_parquet` needs pyarrow: pip install 'lightning-fairprune[parquet]'."
            ) from error

        def write(temporary: Path) -> None:
            head = self._rows(0, 0)
            with parquet.ParquetWriter(temporary, head.schema) as writer:
                for start in range(0, self.num_samples, _ROWS_PER_GROUP):
                    writer.write_table(self._rows(start, start + _ROWS_PER_GROUP))

        write_whole(path, write)

    def _rows(self, start: int, stop: int) -> Any:
        import pyarrow as pa

        rows = slice(start, stop)
        target = self.target[rows].cpu()
        columns = {
            "index": torch.arange(start, start + len(target)).numpy(),
            "target": target.numpy(),
        }
        if self.group is not None:
            columns["group"] = self.group[rows].cpu().numpy()
        ends = torch.arange(0, (len(target) + 1) * self.num_epochs, max(self.num_epochs, 1))
        offsets = (ends if self.num_epochs else torch.zeros(len(target) + 1)).int().numpy()
        unseen = ~self.observed[:, rows].T.flatten().cpu()
        for name, values in self.signals.items():
            flat = values[:, rows].T.flatten().cpu()
            flat = flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
            items = pa.array(flat.numpy(), mask=unseen.numpy())
            columns[name] = pa.ListArray.from_arrays(offsets, items)
        return pa.table(columns)


def _check_index(name: str, values: Tensor) -> None:
    if values.dtype != torch.int64:
        raise TypeError(f"`{name}` must be int64, got {values.dtype}.")
    if values.ndim != 1:
        raise ValueError(f"`{name}` must be [N], got shape {list(values.shape)}.")


def _check_like(name: str, values: Tensor, shape: torch.Size, device: torch.device) -> None:
    if values.shape != shape:
        raise ValueError(f"`{name}` must have shape {list(shape)}, got {list(values.shape)}.")
    if values.device != device:
        raise ValueError(f"`{name}` must be on {device} like `target`, got {values.device}.")


def _check_signal(name: str, values: Tensor) -> None:
    if not name.isidentifier() or name in _RESERVED:
        raise ValueError(
            f"`signals` must be named by identifiers other than {', '.join(_RESERVED)}, got {name!r}."
        )
    if (name == "correct") != (values.dtype == torch.bool):
        raise TypeError(
            f"`signals[{name!r}]` must be {'bool' if name == 'correct' else 'floating'}, "
            f"got {values.dtype}."
        )
    if values.dtype != torch.bool and values.dtype not in _FLOATS:
        raise TypeError(
            f"`signals[{name!r}]` must be {', '.join(map(str, _FLOATS))}, got {values.dtype}."
        )


def _check_finite(name: str, values: Tensor, observed: Tensor) -> None:
    bad = observed & ~values.isfinite()
    if bad.any():
        epoch, sample = divmod(int(bad.flatten().to(torch.uint8).argmax()), bad.shape[1])
        found = "NaN" if values[epoch, sample].isnan() else "infinite"
        raise ValueError(
            f"`{name}` is {found} for sample {sample} in epoch {epoch}, where it was observed: "
            "the training diverged, or `observed` is wrong."
        )
