"""Outlines of a tumour type learnt from a few patients, judged on each scan's own grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor

from medmeta.episodes import Examples, generator_of, segmentation_task
from medmeta.evaluation import metrics
from medmeta.evaluation.answers import Answers
from medmeta.evaluation.catalogue import Catalogue
from medmeta.evaluation.manifest import Episode, Manifest
from medmeta.evaluation.pixels import WholeScan
from medmeta.evaluation.records import Case, Method, Picture, ScanMethod
from medmeta.evaluation.truths import Truths
from medmeta.evaluation.viewer import Reel, reel, slice_axis
from medmeta.volumes import Plan, Store, Volume, restore
from medmeta.volumes.reading import read_image

NO_WORST = frozenset({"hd95_mm", "volume_error_ml", "false_lesions", "false_volume_ml"})
"""Figures that can be ever so bad: of a missing prediction they say nothing; all others count the worst."""


class Segmenting:
    """Adapts to episodes of one tumour type, and judges outlines on each scan's own grid."""

    def __init__(self, manifest: Manifest, catalogue: Catalogue, store: Store, tolerance: float) -> None:
        self.manifest, self.catalogue, self.store, self.tolerance = manifest, catalogue, store, tolerance
        self.shown = _shown(manifest)
        self.truths = Truths()
        self.pictures: list[Picture] = []

    def adapt(self, method: Method | ScanMethod, episode: Episode) -> Any:
        """Learn from the support: crops of each patient, the same at every number of shots."""
        volumes = [self.catalogue[k] for k in episode.support]
        if isinstance(method, ScanMethod):
            return method.learn([self.store.read(v) for v in volumes])
        task = segmentation_task(volumes, episode.tumours[0], self.store, crops=self.manifest.crops)
        parts = [
            task.examples([v], generator_of(self.manifest.seed, episode.draw, int(k.image, 16)))
            for k, v in zip(episode.support, volumes, strict=True)
        ]
        return method.adapt(_joined(parts))

    def cases(self, predictor: Any, episode: Episode, name: str) -> list[Case]:
        """Judge every query."""
        made = []
        for key in episode.query:
            volume = self.catalogue[key]
            grid = self.truths.grid(volume)
            truth = self.truths.truth(volume, present=episode.label(key) == 1)
            found = (
                predictor.mask(episode, key, grid)
                if isinstance(predictor, Answers)
                else outline(predictor, volume, self.store, grid)
            )
            made.append(self._case(episode, name, volume, truth, found))
        return made

    def _case(self, episode: Episode, name: str, volume: Volume, truth: Tensor, found: Tensor | None) -> Case:
        affine = torch.as_tensor(self.truths.grid(volume).affine)
        spacing = tuple(float(s) for s in affine[:3, :3].norm(dim=0))
        given = torch.zeros_like(truth) if found is None else found
        values = judged_values(given, truth, spacing, self.tolerance)
        if found is None:
            values |= _unsaid(values)
        case = Case(
            episode.tumours[0],
            episode.shot,
            name,
            episode.draw,
            self.store.patient(volume),
            values,
            truth=bool(truth.any()),
            missing=found is None,
        )
        if episode.name in self.shown and bool((truth | given).any()):
            self.pictures.append(_picture(case, truth, given, reel(volume, truth, given, spacing)))
        return case


def _shown(manifest: Manifest) -> set[str]:
    """Names of the episodes whose scans are shown: of each type the first draw at its most shots."""
    first = sorted(manifest.episodes, key=lambda e: (-e.shot, e.draw))
    return {next(e.name for e in first if e.tumours == names) for names in {e.tumours for e in first}}


def _joined(parts: Sequence[Examples]) -> Examples:
    return Examples(
        torch.cat([p.image for p in parts]),
        torch.cat([p.label for p in parts]),
        parts[0].classes,
        tuple(name for p in parts for name in p.patients),
    )


def outline(predictor: Callable[[Tensor], Any], volume: Volume, store: Store, native: Any) -> Tensor | None:
    """Boolean ``(x, y, z)`` on the scan's own grid: where the predictor sees the tumour.

    None where it gives what is no number, as a learner that ran away does: called free of the tumour it would
    be the best there is on those who are.
    """
    prepared = store.read(volume)
    probability = torch.softmax(logits_of(predictor, prepared.image, store.plan), 0)
    if bool(probability.isnan().any()):
        return None
    return restore(probability, prepared.affine, native).as_tensor().argmax(0) > 0


def logits_of(predictor: Callable[[Tensor], Any], image: Tensor, plan: Plan) -> Tensor:
    """Logits ``(way, *space)`` of a prepared scan ``(channel, *space)``, window by window unless taken whole.

    Windows overlap by a quarter: half, as bundles do it, takes twice as long in 3D.
    """
    window = SlidingWindowInferer(plan.patch, sw_batch_size=4, overlap=0.25, mode="gaussian")
    with torch.no_grad():
        whole = isinstance(predictor, WholeScan)
        logits = predictor(image[None]) if whole else window(image[None], predictor)
    return torch.as_tensor(logits)[0]


def judged_values(
    found: Tensor, truth: Tensor, spacing: Sequence[float], tolerance: float
) -> dict[str, float | None]:
    """Every figure of one outline; None where it says nothing (see :mod:`medmeta.evaluation.scores`).

    Where there is no target only false alarms, their volume and false lesions are said: overlap and distance
    of nothing with nothing would raise every mean.

    Args:
        found, truth: boolean ``(x, y, z)``.
        spacing: mm of a voxel along each axis.
        tolerance: mm within which a surface counts as right.
    """
    hit, lesions, false = metrics.lesions(found, truth)
    volume = metrics.volume_ml(found, spacing)
    if not bool(truth.any()):
        nothing = dict.fromkeys(("dice", "dice_target_slices", "nsd", "hd95_mm", "volume_error_ml"))
        alarm = float(bool(found.any()))
        return {**nothing, "false_lesions": float(false), "false_volume_ml": volume, "false_alarm": alarm}
    distance, surface = metrics.surface(found, truth, spacing, tolerance)
    return {
        "dice": metrics.dice(found, truth),
        "dice_target_slices": metrics.target_slices_dice(found, truth, slice_axis(truth.shape, spacing)),
        "nsd": surface,
        "hd95_mm": distance,
        "volume_error_ml": volume - metrics.volume_ml(truth, spacing),
        "lesions": float(lesions),
        "lesions_hit": float(hit),
        "false_lesions": float(false),
    }


def _unsaid(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """What differs where nothing was said of a scan from where it was called free.

    A scan that nothing was said of counts as a false alarm where it is free; no figure without a worst value
    is made up for it, for 0 false lesions would be the best there is.
    """
    made: dict[str, float | None] = dict.fromkeys(values.keys() & NO_WORST)
    return made | ({"false_alarm": 1.0} if "false_alarm" in values else {})


def _picture(case: Case, truth: Tensor, found: Tensor, kept: Reel) -> Picture:
    """The slice that shows most of the truth, read from the scan's file again."""
    spacing = kept.spacing
    axis = slice_axis(truth.shape, spacing)
    shown = truth if bool(truth.any()) else found
    number = int(shown.sum([a for a in range(3) if a != axis]).argmax())
    rest = [s for a, s in enumerate(spacing) if a != axis]
    image = read_image(kept.volume).as_tensor()[0]
    # copies: a view of a slice would keep all of its scan in memory
    cut = [v.select(axis, number).numpy().T.copy() for v in (image, truth, found)]
    return Picture(case, cut[0], cut[1], cut[2], rest[1] / rest[0], kept)
