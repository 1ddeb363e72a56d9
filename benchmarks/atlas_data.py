"""The sets of the lesion atlas, what is held out of them, and the episodes that are trained on."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from medmeta.episodes import Augment, Episode, Examples, generator_of
from medmeta.episodes.augment import augment_episode
from medmeta.episodes.selfsupervised import SuperpixelSource

SIDE = 128
SHOTS = (1, 3, 5)
GROUPS: Mapping[str, tuple[str, ...]] = {
    "brain tumours": ("brain_glioma", "brain_meningioma", "brain_pituitary", "glioma_T2"),
    "breast": ("breast_",),
    "lung, kidney, liver": ("lung_", "kidney_", "liver_"),
    "stroke, pancreas, prostate": ("brain_stroke", "brain_haemorrhage", "pancreas_", "prostate_"),
}
VALIDATION = ("brain_haemorrhage", "lung_", "kidney_", "pancreas_")
"""Families on whose lesions rates and steps are chosen by a network that never saw them, where not held out.
Once they are chosen, every method is trained on these families, too."""
NEIGHBOURS = 10
"""Where patients are unknown, images numbered no further apart than this are taken for one patient's: the
sources list a patient's slices one after the other, and about a dozen of them."""


@dataclass(frozen=True)
class Atlas:
    """One set: ``image (n, 1, side, side)``, ``label (n, side, side)``, a patient an image."""

    name: str
    kind: str
    image: Tensor
    label: Tensor
    patients: tuple[str, ...]
    known: bool

    def pick(self, indices: Sequence[int]) -> Examples:
        where = list(indices)
        patients = tuple(f"{self.name}/{self.patients[i]}" for i in where)
        return Examples(self.image[where], self.label[where], ("background", "target"), patients)

    def draw(self, shot: int, query: int, generator: torch.Generator) -> tuple[list[int], list[int]]:
        """One image of each of ``shot`` patients, and up to ``query`` images of others."""
        names = sorted(set(self.patients))
        order = torch.randperm(len(names), generator=generator).tolist()
        of = {n: [i for i, p in enumerate(self.patients) if p == n] for n in names}
        support = []
        for o in order[:shot]:
            own = of[names[o]]
            support.append(own[int(torch.randint(len(own), (1,), generator=generator))])
        rest = [i for o in order[shot:] for i in of[names[o]]]
        chosen = torch.randperm(len(rest), generator=generator).tolist()[:query]
        return support, [rest[c] for c in chosen]


def read(folder: Path) -> list[Atlas]:
    """Read every npz: images averaged to 128 x 128 and standardised, masks taken at every second pixel."""
    sets = []
    for file in sorted(folder.rglob("*.npz")):
        with np.load(file) as data:
            image, mask = data["images"].astype(np.float32), data["masks"] > 0
            patients, meta = [str(p) for p in data["patients"]], json.loads(str(data["meta"]))
            ids = [str(i) for i in data["ids"]]
        known = "?" not in patients
        if not known:  # and the table says so
            patients = neighbours(ids)
        step = image.shape[1] // SIDE
        image = image.reshape(len(image), SIDE, step, SIDE, step).mean((2, 4))
        mean, deviation = image.mean((1, 2), keepdims=True), image.std((1, 2), keepdims=True)
        image = (image - mean) / np.maximum(deviation, 1e-3)
        label = torch.from_numpy(np.ascontiguousarray(mask[:, ::step, ::step])).long()
        keep = label.flatten(1).any(1)
        pixels = torch.from_numpy(image)[:, None]
        kept = tuple(p for p, k in zip(patients, keep.tolist(), strict=True) if k)
        sets.append(Atlas(file.stem, str(meta["kind"]), pixels[keep], label[keep], kept, known))
    return sets


def neighbours(ids: Sequence[str]) -> list[str]:
    """A name for each image's patient where only the numbers of images are known.

    >>> neighbours(["a_3", "a_40", "a_12", "b_4"])
    ['a_3', 'a_40', 'a_3', 'b_4']
    """
    parts = [re.fullmatch(r"(.*?)(\d+)", i) for i in ids]
    numbers = [(m[1], int(m[2])) if m else (i, 0) for m, i in zip(parts, ids, strict=True)]
    names, last = [""] * len(ids), ("", -NEIGHBOURS - 1)
    before = ""
    for i in sorted(range(len(ids)), key=lambda i: numbers[i]):
        near = numbers[i][0] == last[0] and numbers[i][1] - last[1] <= NEIGHBOURS
        names[i] = before = before if near else ids[i]
        last = numbers[i]
    return names


def group_of(name: str) -> str:
    return next(g for g, starts in GROUPS.items() if name.startswith(starts))


@dataclass
class Split:
    """One family held out: what is trained on while rates are chosen, on what, what then, what is tested."""

    group: str
    train: tuple[Atlas, ...]
    validate: tuple[Atlas, ...]
    every: tuple[Atlas, ...]
    test: tuple[Atlas, ...]

    @property
    def key(self) -> str:
        return self.group.split(",")[0].replace(" ", "-")


def split(sets: Sequence[Atlas], group: str, organs: bool) -> Split:
    """Hold a family out; the proof is asserted, by name and by pixels."""
    test = tuple(s for s in sets if group_of(s.name) == group)
    rest = [s for s in sets if group_of(s.name) != group]
    train = tuple(s for s in rest if not s.name.startswith(VALIDATION))
    validate = tuple(s for s in rest if s.name.startswith(VALIDATION) and s.kind != "organ")
    seen = {one.numpy().tobytes() for s in rest for one in s.image}
    assert not any(one.numpy().tobytes() in seen for s in test for one in s.image), f"{group} leaks"
    return Split(group, train, validate, tuple(rest), tuple(s for s in test if organs or s.kind != "organ"))


CELL = 2
"""Networks see cells of 2 x 2 pixels, four channels each, at a quarter of the cost. Outlines drawn on cells
reach Dice 90 in the mean over the lesion types, and 55 where lesions are smallest (brain haemorrhage)."""


def celled(examples: Examples) -> Examples:
    """Pixels as channels of cells; a cell is target where half of it is, or any where no cell would be."""
    share = nn.functional.avg_pool2d((examples.label[:, None] > 0).float(), CELL)[:, 0]
    label = torch.where((share >= 0.5).flatten(1).any(1)[:, None, None], share >= 0.5, share > 0)
    image = nn.functional.pixel_unshuffle(examples.image, CELL)
    return Examples(image, label.long(), examples.classes, examples.patients)


@dataclass(frozen=True)
class AtlasSource:
    """Training episodes by number: a training type, moved, recoloured; now and then a superpixel."""

    sets: tuple[Atlas, ...]
    seed: int
    pseudo: SuperpixelSource | None = None
    share: float = 0.0
    query: int = 2

    def __getitem__(self, index: int) -> Episode:
        g = generator_of(self.seed, index)
        if self.pseudo is not None and float(torch.rand((), generator=g)) < self.share:
            made = self.pseudo[index]
            made = recoloured(made, g)
            return Episode(celled(made.support), celled(made.query))
        own = self.sets[int(torch.randint(len(self.sets), (1,), generator=g))]
        patients = len(set(own.patients))
        shot = min(1 + int(torch.randint(5, (1,), generator=g)), max(1, patients - 1))
        support, query = own.draw(shot, self.query, g)
        plain = Episode(own.pick(support), own.pick(query))
        moved = augment_episode(plain, MOVED, g)
        if not bool((moved.support.label > 0).any()):  # moved out of sight, or between two pixels
            moved = plain
        moved = recoloured(moved, g)
        return Episode(celled(moved.support), celled(moved.query))


MOVED = Augment(gain=0.3, bias=0.3, rotate=20.0, scale=0.2)


def recoloured(episode: Episode, generator: torch.Generator) -> Episode:
    """Now and then invert the grey scale, or bend it by a gamma: another scanner, another contrast."""
    invert, gamma = torch.rand(2, generator=generator).tolist()
    power = 2 ** (2 * gamma - 1)

    def change(e: Examples) -> Examples:
        low, high = e.image.amin((1, 2, 3), keepdim=True), e.image.amax((1, 2, 3), keepdim=True)
        unit = ((e.image - low) / (high - low).clamp(min=1e-3)).clamp(0, 1)
        bent = unit**power if invert > 0.3 else 1 - unit**power
        image = (bent - bent.mean((1, 2, 3), keepdim=True)) / bent.std((1, 2, 3), keepdim=True).clamp(
            min=1e-3
        )
        return Examples(image, e.label, e.classes, e.patients)

    return Episode(change(episode.support), change(episode.query))


@dataclass(frozen=True)
class Pool:
    """A few hundred training episodes that come again and again, for a learner that remembers them.

    Those of a set hang on its name alone, so that all splits share what is remembered.
    """

    sets: tuple[Atlas, ...]
    seed: int
    each: int
    query: int = 4

    def __getitem__(self, index: int) -> Episode:
        number = index % (self.each * len(SHOTS) * len(self.sets))
        own, turn = self.sets[number % len(self.sets)], number // len(self.sets)
        shot = min(SHOTS[turn % len(SHOTS)], len(set(own.patients)) - 1)
        generator = generator_of(self.seed, 500, zlib.crc32(own.name.encode()), turn)
        support, query = own.draw(shot, self.query, generator)
        return Episode(own.pick(support), own.pick(query))
