"""A function of tensors compiled once for each kind of arguments; on a GPU, captured as one graph.

Tasks in one batch run some thousand small kernels, which a GPU finishes sooner than they can be launched. A
compiler joins them, and a captured graph launches them all at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from medmeta.learners.metagradient import Weights

log = logging.getLogger(__name__)

Step = Callable[[Weights, Weights], tuple[Tensor, Weights]]


class Compiled:
    """Steps by what they were compiled for; a copy of the learner that has them compiles its own.

    Args:
        compiler: the backend of ``torch.compile``; by default torch's own, with graphs captured on a GPU.

    Example:
        >>> step = lambda data, meta: (data["x"].sum(), {"w": 2 * meta["w"]})
        >>> run = Compiled("eager")
        >>> run("double", step, {"x": torch.ones(3)}, {"w": torch.tensor(2.0)})[1]
        {'w': tensor(4.)}
    """

    def __init__(self, compiler: str = "") -> None:
        self.compiler = compiler
        self.steps: dict[Hashable, Step] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        """Start anew: what is compiled belongs to the learner it was made of."""
        return Compiled(self.compiler)

    def __call__(self, kind: Hashable, step: Step, data: Weights, meta: Weights) -> tuple[Tensor, Weights]:
        """Run a step, compiled where one of its kind was; as it is, with a warning, where that cannot be.

        Args:
            kind: whatever the step depends on beside the tensors' values.
            step: tensors of the tasks and meta-parameters to losses and gradients.
            data: the tensors of the tasks.
            meta: the meta-parameters.
        """
        cuda = next(iter(data.values())).is_cuda
        kind = (kind, cuda, *((n, t.shape, t.dtype) for n, t in data.items()))
        if kind not in self.steps:
            how: dict[str, Any] = {"mode": "reduce-overhead"} if cuda else {}
            how |= {"backend": self.compiler} if self.compiler else {}
            self.steps[kind] = torch.compile(step, fullgraph=True, dynamic=False, **how)
        plain = {n: w.detach() for n, w in meta.items()}
        try:
            losses, gradients = self.steps[kind](data, plain)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            log.warning("tasks run in one batch, but not compiled: %s", str(error).strip().splitlines()[0])
            self.steps[kind] = step
            return step(data, plain)
        # a captured graph writes its next answers over these
        return losses.clone(), {n: g.clone() for n, g in gradients.items()}
