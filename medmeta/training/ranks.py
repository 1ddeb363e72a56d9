"""The processes of one training: each takes its share of a meta-batch, gradients are summed over all."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from medmeta.training.checkpoint import RunError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; alone by default."""

    rank: int = 0
    world: int = 1

    @staticmethod
    def join(timeout_s: float = 300.0) -> Ranks:
        """Join the processes that torchrun started; alone where it did not.

        A process that dies makes the others' next exchange fail within ``timeout_s`` seconds.

        Raises:
            RunError: where there are GPUs, but none for this process.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return Ranks()
        if not dist.is_initialized():
            if torch.cuda.is_available():
                _take_own_gpu()
            backend = "nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s))
        return Ranks(dist.get_rank(), dist.get_world_size())

    def wait(self) -> None:
        """Wait for the others, so that all see what one has written."""
        if self.world > 1:
            dist.barrier()

    def leave(self) -> None:
        """Leave the others."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum every parameter's gradient over the processes; one that a process has not is zero there."""
        if self.world < 2:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)

    def gather(self, values: list[float]) -> list[float]:
        """The values of all processes, in turn: one of each, then the next of each."""
        if self.world < 2:
            return values
        all_values: list[Any] = [None] * self.world
        dist.all_gather_object(all_values, values)
        longest = max(len(v) for v in all_values)
        return [v[i] for i in range(longest) for v in all_values if i < len(v)]

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return any(self.gather([float(flag)]))

    def first(self, value: T) -> T:
        """The first process's value, in all of them: what must be decided once."""
        if self.world < 2:
            return value
        held: list[Any] = [value]
        dist.broadcast_object_list(held, src=0)
        agreed: T = held[0]
        return agreed


def local_rank() -> int:
    """This process's number on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _take_own_gpu() -> None:
    """Make this process's GPU the current one, through which NCCL passes all that is no tensor of ours."""
    number, there = local_rank(), torch.cuda.device_count()
    if number >= there:
        raise RunError(
            "a GPU for each process",
            found=f"{there} for process {number + 1} of this machine",
            cure="Start no more processes than the machine has GPUs.",
        )
    torch.cuda.set_device(number)
