"""Splits by patient, never by image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from medmeta.errors import nearest
from medmeta.volumes.layouts import CohortError
from medmeta.volumes.record import Volume


def split_patients(
    volumes: Sequence[Volume], fractions: Sequence[float], generator: torch.Generator
) -> tuple[tuple[Volume, ...], ...]:
    """Split volumes so that no patient is in two parts, tumour types spread evenly.

    Args:
        volumes: volumes of any number of patients.
        fractions: share of the patients in each part, positive, summing to 1.
        generator: draws who goes where; the same generator state gives the same split in any order of
            ``volumes``.

    Returns:
        One tuple of volumes a fraction, in the order given; no part is empty.

    Raises:
        CohortError: where there are fewer patients than parts or the fractions do not sum to 1.

    Example:
        >>> from pathlib import Path
        >>> volumes = [Volume(f"p{i}", (Path("x.nii.gz"),), tumour="glioma") for i in range(10)]
        >>> [len(part) for part in split_patients(volumes, (0.8, 0.2), torch.Generator().manual_seed(0))]
        [8, 2]
    """
    if not fractions or min(fractions) <= 0 or not math.isclose(sum(fractions), 1.0, abs_tol=1e-6):
        raise CohortError(
            "positive fractions that sum to 1", found=str(tuple(fractions)), cure="Rescale them."
        )
    types: dict[str, set[str]] = {}
    for volume in volumes:
        types.setdefault(volume.patient, set()).add(volume.tumour or "")
    if len(types) < len(fractions):
        raise CohortError(
            f"at least {len(fractions)} patients, one a part",
            found=f"{len(types)} patient(s)",
            cure="Ask for fewer parts or add patients.",
        )
    part = _assign(types, fractions, generator)
    return tuple(tuple(v for v in volumes if part[v.patient] == p) for p in range(len(fractions)))


def _assign(
    types: dict[str, set[str]], fractions: Sequence[float], generator: torch.Generator
) -> dict[str, int]:
    """Deal the patients out, type by type, each to the part that is furthest behind its share."""
    names = sorted(types)
    order = torch.randperm(len(names), generator=generator).tolist()
    shuffled = [names[i] for i in order]
    shuffled.sort(key=lambda name: sorted(types[name]))  # stable: random within a type
    counts = [0] * len(fractions)
    part: dict[str, int] = {}
    for dealt, name in enumerate(shuffled, start=1):
        left = len(shuffled) - dealt + 1
        empty = [p for p, count in enumerate(counts) if count == 0]
        choice = empty if left <= len(empty) else range(len(fractions))
        part[name] = max(choice, key=lambda p: fractions[p] * dealt - counts[p])
        counts[part[name]] += 1
    return part


def hold_out(
    volumes: Sequence[Volume], tumours: Sequence[str], generator: torch.Generator, *, share: float = 0.5
) -> tuple[tuple[Volume, ...], tuple[Volume, ...]]:
    """Part volumes to train on from those to judge held-out types on: no type and no patient in both.

    A patient with held-out types alone is judged on, one with other types alone is trained on. Patients who
    have both (all of them, where one mask shows several structures) and patients free of every type, whom
    both sides need, are dealt out by ``share``; their volumes of the other side's types are left out.

    Args:
        volumes: of all types.
        tumours: the held-out types.
        generator: draws who goes where.
        share: of the patients with both, and of the free, who are judged on; between 0 and 1.

    Returns:
        Volumes to train on (no held-out type), volumes to judge on (held-out types and free patients).

    Raises:
        CohortError: where a held-out type is not there, or one side would be empty.

    Example:
        >>> from pathlib import Path
        >>> made = [Volume(f"p{i}", (Path("x"),), tumour=t) for i in range(4) for t in ("liver", "spleen")]
        >>> train, judge = hold_out(made, ["spleen"], torch.Generator().manual_seed(0))
        >>> [v.tumour for v in train], [v.tumour for v in judge]
        (['liver', 'liver'], ['spleen', 'spleen'])
    """
    types: dict[str, set[str | None]] = {}
    for volume in volumes:
        types.setdefault(volume.patient, set()).add(volume.tumour)
    known = {t for held in types.values() for t in held if t}
    for name in tumours:
        if name not in known:
            raise CohortError(f"the held-out type {name!r}", found="no such type", cure=nearest(name, known))
    held = set(tumours)
    judged = {p for p, own in types.items() if own & held and not own - held - {None}}
    for both in (
        sorted(p for p, own in types.items() if own & held and own - held - {None}),
        sorted(p for p, own in types.items() if own == {None}),
    ):
        order = torch.randperm(len(both), generator=generator).tolist()
        judged |= {both[i] for i in order[: round(share * len(both))]}
    train = tuple(v for v in volumes if v.patient not in judged and v.tumour not in held)
    judge = tuple(v for v in volumes if v.patient in judged and (v.tumour in held or v.tumour is None))
    if not any(v.tumour for v in train) or held - {v.tumour for v in judge}:
        counts = [len({v.patient for v in side}) for side in (train, judge)]
        raise CohortError(
            "patients on both sides of the hold-out",
            found=f"{counts[0]} to train on, {counts[1]} to judge on",
            cure="Hold out fewer types, add patients, or give a share between 0 and 1.",
        )
    return train, judge
