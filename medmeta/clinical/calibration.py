"""What leaving support patients out in turn tells: temperature, least volume, likeness."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medmeta.clinical.confidence import OWN, Confidence, Moments, foldable, likeness, through
from medmeta.clinical.whole import seen_texture, seen_whole
from medmeta.clinical.windows import body, planes
from medmeta.episodes import Examples
from medmeta.errors import MedmetaError
from medmeta.volumes import Plan, Prepared

FOLDS = 5
"""Most patients that are left out in turn."""
_VOXELS = 20000  # of a class and scan that the temperature is fitted on
_COLDEST, _HOTTEST = 0.1, 30.0


@dataclass(frozen=True)
class LeftOut:
    """Logits of one patient who was not learnt from.

    Args:
        logits: ``(n, way)``.
        label: ``(n)``.
        weight: ``(n)``, what each counts; 1 in all.
        millilitres: outlined in the whole scan; None where scans are classified.
        hit: whether some of that is target.
    """

    logits: Tensor
    label: Tensor
    weight: Tensor
    millilitres: float | None = None
    hit: bool = False


def fit_temperature(left_out: Sequence[LeftOut], *, doubt: float = 0.0) -> float:
    """The temperature under which those left out are least surprising (Guo et al. 2017, eq. 9).

    Args:
        left_out: each counts alike.
        doubt: probability that is kept for the other classes, whatever the label (Platt 1999):
            1 / (n + 2) of n patients where a scan is one answer: five that are all right make no sixth sure.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0]] * 10)
        >>> label = torch.tensor([0] * 8 + [1] * 2)  # 98 % sure, right in 80 %
        >>> made = fit_temperature([LeftOut(logits, label, torch.full((10,), 0.1))])
        >>> round(float(torch.softmax(logits[0] / made, 0)[0]), 3)
        0.8
    """
    from scipy.optimize import minimize_scalar

    way = left_out[0].logits.shape[1]
    smooth = doubt * way / (way - 1)  # torch spreads it over all classes, the right one too

    def surprise(logarithm: float) -> float:
        t = math.exp(logarithm)
        losses = [
            functional.cross_entropy(o.logits / t, o.label, reduction="none", label_smoothing=smooth)
            for o in left_out
        ]
        return float(sum((loss * o.weight).sum() for loss, o in zip(losses, left_out, strict=True)))

    bounds = (math.log(_COLDEST), math.log(_HOTTEST))
    return math.exp(minimize_scalar(surprise, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x)


def least_volume(left_out: Sequence[LeftOut]) -> float:
    """Millilitres below which an answer is "no tumour": half of the least that was rightly found in a patient
    left out, 0 where none was."""
    found = [o.millilitres for o in left_out if o.hit and o.millilitres is not None]
    return 0.5 * min(found) if found else 0.0


def calibrate(
    adapt: Callable[[Examples], nn.Sequential],
    support: Examples,
    prepared: Sequence[Prepared],
    plan: Plan,
    network: nn.Sequential,
) -> Confidence:
    """Leave support patients out in turn, and see how sure the rest is of them.

    No label is asked for but the support's. With one patient nothing can be left out: temperature 1, no
    threshold, and the record says so.

    Args:
        adapt: from a support to the network that would be exported.
        support: all of it.
        prepared: its scans, one a patient or more; of classified ones, in the order of the examples.
        plan: their preprocessing.
        network: what all of the support gave.
    """
    patients = sorted({p.patient for p in prepared})
    scans: dict[str, list[Tensor]] = {patient: [] for patient in patients}
    for one in prepared:
        scans[one.patient].append(_look(network, plan, one, len(support.classes))[1])
    like = likeness(list(scans.values()), OWN * plan.inputs)
    left_out: list[LeftOut] = []
    asked = 0
    for patient in patients[:FOLDS] if len(patients) > 1 else []:
        rest = _without(support, patient)
        if not all(rest.shot):
            continue
        try:
            made = adapt(rest)
        except MedmetaError:  # the rest may be too few for the learner
            continue
        asked += 1
        out = [p for p in prepared if p.patient == patient]
        left_out += [_judge(made, plan, p, _label(support, prepared, p), len(support.classes)) for p in out]
    if not left_out:
        return Confidence(likeness=like, why="nothing could be left out of the support: temperature 1")
    if not foldable(network):
        why = "the last layer is no linear map: temperature 1"
        return Confidence(1.0, least_volume(left_out), like, why)
    why = f"{len(left_out)} of the support left out in turn"
    doubt = 0.0 if support.segments else 1 / (asked + 2)
    return Confidence(fit_temperature(left_out, doubt=doubt), least_volume(left_out), like, why)


def false_alarms(
    network: nn.Module, plan: Plan, scans: Sequence[Prepared], way: int, *, least_ml: float = 0.0
) -> dict[str, float]:
    """How often something is outlined in a patient known to be free of the tumour.

    Args:
        network: of a bundle that segments.
        plan: its preprocessing.
        scans: of patients without any target, none of them in the support.
        way: classes.
        least_ml: below it the answer is "no tumour".

    Returns:
        ``scans``, ``alarms`` among them, ``patients``, and over these ``rate``, each patient's share of scans
        with an alarm counting once, with its 95 % interval ``low``, ``high``: Wilson's (1927) for as many
        patients. A share spreads no further than a yes or a no of the same mean, so where a patient has
        several scans it is at most too wide.
    """
    shares: dict[str, list[bool]] = {}
    for scan in scans:
        logits, _, inside = _look(network, plan, scan, way)
        volume = _millilitres((logits.argmax(0) > 0) & torch.from_numpy(inside), scan)
        shares.setdefault(scan.patient, []).append(volume > 0 and volume >= least_ml)
    made: dict[str, float] = {
        "scans": len(scans),
        "alarms": sum(map(sum, shares.values())),
        "patients": len(shares),
    }
    if not shares:
        return made
    rate = fmean(fmean(own) for own in shares.values())
    low, high = _wilson(rate, len(shares))
    return {**made, "rate": round(rate, 4), "low": round(low, 4), "high": round(high, 4)}


def _wilson(rate: float, count: int) -> tuple[float, float]:
    """The 95 % interval; scipy's takes whole counts alone."""
    z2 = NormalDist().inv_cdf(0.975) ** 2
    middle = (rate + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (rate * (1 - rate) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def _millilitres(found: Tensor, scan: Prepared) -> float:
    return float(found.sum()) * abs(float(torch.linalg.det(scan.affine[:3, :3].double()))) / 1000


def _without(support: Examples, patient: str) -> Examples:
    keep = [i for i, name in enumerate(support.patients) if name != patient]
    patients = tuple(support.patients[i] for i in keep)
    return Examples(support.image[keep], support.label[keep], support.classes, patients)


def _label(support: Examples, prepared: Sequence[Prepared], one: Prepared) -> int | None:
    """The class of a scan that is classified."""
    return None if support.segments else int(support.label[[p is one for p in prepared].index(True)])


def _look(network: nn.Module, plan: Plan, scan: Prepared, way: int) -> tuple[Tensor, Tensor, Any]:
    """Logits of a scan, its features' moments, and its body where it is segmented."""
    with torch.inference_mode():
        if plan.whole:
            return (*seen_whole(network, scan.image), None)
        image = scan.image if plan.spatial_dims == 3 else scan.image.unsqueeze(plan.slice_axis + 1)
        inside, seen = body(image, plan.spacing), Moments()
        parts = planes(plan, lambda x, there: through(network, x, seen, there), image, inside, way)
        logits = torch.cat([part for _, part in parts], 3)
        seen_texture(image, seen, inside)
        return logits, seen.described(), inside


def _judge(network: nn.Module, plan: Plan, scan: Prepared, label: int | None, way: int) -> LeftOut:
    logits, _, inside = _look(network, plan, scan, way)
    if label is not None:
        return LeftOut(logits[None].clone(), torch.tensor([label]), torch.ones(1))
    assert scan.mask is not None
    mask = scan.mask if plan.spatial_dims == 3 else scan.mask.unsqueeze(plan.slice_axis)
    there = torch.from_numpy(inside)
    found = (logits.argmax(0) > 0) & there
    flat, truth = logits[:, there].T, mask[there].long()
    kept, weight = _sample(truth)
    return LeftOut(
        flat[kept].clone(), truth[kept], weight, _millilitres(found, scan), bool((found & (mask > 0)).any())
    )


def _sample(truth: Tensor) -> tuple[Tensor, Tensor]:
    """Voxels of each class at even steps, and what each stands for."""
    kept, weight = [], []
    for label in truth.unique():
        where = torch.where(truth == label)[0]
        some = where[:: max(1, len(where) // _VOXELS)]
        kept.append(some)
        weight.append(torch.full((len(some),), len(where) / len(some) / len(truth)))
    return torch.cat(kept), torch.cat(weight)
