"""What ``inspect`` says of one volume: its verdict, its grid and the labels on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from medmeta.volumes.errors import VolumeError
from medmeta.volumes.scan import spacing


@dataclass(frozen=True)
class Entry:
    """One line of ``inspect``; its fields are the keys of the JSON.

    Args:
        path: relative to what was inspected.
        ok: whether it can be read.
        code, message: the refusal, ``""`` where there is none.
        patient: hashed key.
        modality, unit: ``""`` where unknown.
        shape: ``(x, y, z)``.
        spacing_mm: voxel size.
        affine: 4 rows, voxel index to RAS mm.
        orientation: where the stored axes point to, e.g. ``"RAS"``.
        labels: voxels of each label.
        labels_ml: the same in millilitres.
        warnings: what is worth knowing.
        series: short key that chooses it among several of one path.
    """

    path: str
    ok: bool = True
    code: str = ""
    message: str = ""
    patient: str = ""
    modality: str = ""
    unit: str = ""
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    affine: tuple[tuple[float, ...], ...] = ()
    orientation: str = ""
    labels: dict[str, int] = field(default_factory=dict)
    labels_ml: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    series: str = ""

    def refused(self, error: VolumeError) -> Entry:
        """The same with a verdict against it."""
        return replace(self, ok=False, code=error.code, message=str(error))

    def on(self, affine: NDArray[np.float64], shape: Sequence[int]) -> Entry:
        """The same with a grid."""
        rows = tuple(tuple(round(float(v), 6) + 0.0 for v in row) for row in affine)
        return replace(
            self,
            affine=rows,
            shape=tuple(shape),
            spacing_mm=spacing(affine),
            orientation=_orientation(affine),
        )

    def with_labels(self, labels: dict[str, int], mask: str) -> Entry:
        """The same with more labels; those that another mask of the image has, too, are called by theirs."""
        twice = [name for name in labels if name in self.labels]
        labels = {f"{name} ({mask})" if name in twice else name: count for name, count in labels.items()}
        millilitres = abs(float(np.linalg.det(np.array(self.affine)[:3, :3]))) / 1000 if self.affine else 0.0
        volumes = {name: round(count * millilitres, 3) for name, count in labels.items()}
        more = replace(self, labels={**self.labels, **labels}, labels_ml={**self.labels_ml, **volumes})
        return more.warned(f"several masks of it have the label {', '.join(twice)}") if twice else more

    def warned(self, *warnings: str) -> Entry:
        """The same with more warnings."""
        return replace(self, warnings=tuple(dict.fromkeys((*self.warnings, *warnings))))


def _orientation(affine: NDArray[np.float64]) -> str:
    from nibabel.orientations import aff2axcodes

    return "".join(code or "?" for code in aff2axcodes(affine))
