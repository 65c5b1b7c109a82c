"""The first step of a fit, which is observed whole. A fit alone needs what it takes, so it is imported then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_fairprune._model.answer import Answer
from lightning_fairprune._model.capture import LossCapture

if TYPE_CHECKING:
    from lightning_fairprune._model.flow import Flow


class FirstStep:
    """Observes a step inside a capture, from `enter` to `leave`."""

    def __init__(self, module: nn.Module, batch: Any, capture: LossCapture) -> None:
        from lightning_fairprune._model.flow import Flow

        self._capture = capture
        self._flow: Flow = Flow(module, batch, capture)
        self.enter, self.leave = self._flow.enter, self._flow.leave

    @property
    def saw_nothing(self) -> bool:
        """Whether the step showed no predictions."""
        return not self._flow.events and not self._capture.calls

    def answer(self, outputs: Any, size: int | None = None) -> Answer:
        """Returns what the step says; raises if it says nothing or two things."""
        from lightning_fairprune._model.agreement import first_answer

        return first_answer(self._flow, self._capture, outputs, size)
