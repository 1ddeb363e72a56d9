"""Splits by patient, never by image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

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
