"""Small learners and episodes that the tests of training share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from medmeta.episodes import Episode, Examples, generator_of
from medmeta.learners import Learner, create_learner

CLASSES = ("background", "tumour")


@dataclass(frozen=True)
class Points:
    """Episodes by number: points of two clusters; ``broken`` of them are too bright for any loss."""

    seed: int = 0
    broken: int | None = None

    def __getitem__(self, index: int) -> Episode:
        """Support of 4, query of 6 points."""
        g = generator_of(self.seed, index)
        centre = torch.randn(2, 5, generator=g)

        def examples(n: int, who: str) -> Examples:
            label = torch.arange(n) % 2
            image = centre[label] + 0.5 * torch.randn(n, 5, generator=g)
            if index == self.broken:
                image = image * 1e38
            return Examples(image, label, CLASSES, tuple(f"{who}{index}-{i}" for i in range(n)))

        return Episode(examples(4, "a"), examples(6, "b"))


def learner(name: str = "proto-maml", network: nn.Module | None = None) -> Learner:
    """A small one, always with the same first weights."""
    torch.manual_seed(0)
    return create_learner(name, network or nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)))


def tensors(made: Learner, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Everything learnt, and everything the optimiser remembers."""
    found = dict(made.state_dict())
    for number, slots in optimiser.state_dict()["state"].items():
        found |= {f"optimiser {number} {slot}": torch.as_tensor(v) for slot, v in slots.items()}
    return {name: value.clone() for name, value in found.items()}
