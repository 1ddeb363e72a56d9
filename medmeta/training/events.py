"""Handlers of MONAI's engines (MLflow's and others) told of work that no ignite engine does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any


class Handlers:
    """Fires ignite's events, so that what attaches to an engine hears of ours: started, each iteration, each
    epoch, completed.

    Args:
        handlers: each with ``attach(engine)``; None, as a handler that its configuration disables, is passed
            over.
        max_epochs: how many there will be.

    Example:
        >>> from ignite.engine import Events
        >>> class Losses(list):
        ...     def attach(self, engine):
        ...         engine.add_event_handler(
        ...             Events.ITERATION_COMPLETED, lambda: self.append(engine.state.output[0]["loss"]))
        >>> heard = Losses()
        >>> with Handlers([heard, None], max_epochs=2) as told:
        ...     told.iteration({"loss": 0.5})
        ...     told.epoch({"score": 0.1})
        >>> list(heard)
        [0.5]
    """

    def __init__(self, handlers: Sequence[Any], *, max_epochs: int) -> None:
        from ignite.engine import Engine

        self._engine = Engine(lambda engine, batch: None)
        state = self._engine.state
        state.max_epochs, state.epoch_length, state.epoch, state.iteration = max_epochs, 1, 0, 0
        for handler in handlers:
            if handler is not None:
                handler.attach(self._engine)

    def __enter__(self) -> Handlers:
        self._fire("STARTED")
        return self

    def iteration(self, output: Mapping[str, float]) -> None:
        """One more piece of work is done.

        Args:
            output: what MONAI's engines leave of a batch of one.
        """
        self._engine.state.iteration += 1
        self._engine.state.output = [dict(output)]
        self._fire("ITERATION_COMPLETED")

    def epoch(self, metrics: Mapping[str, float], *, number: int | None = None) -> None:
        """One more epoch is done.

        Args:
            metrics: its figures.
            number: of the epoch; None counts on.
        """
        state = self._engine.state
        state.epoch = state.epoch + 1 if number is None else number
        state.metrics = dict(metrics)
        self._fire("EPOCH_COMPLETED")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._fire("COMPLETED")

    def _fire(self, name: str) -> None:
        from ignite.engine import Events

        self._engine.fire_event(Events[name])
