"""Which series of a study a bundle is for, by rules that lie in the bundle, and why."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medmeta.clinical.bundle import BundleError
from medmeta.volumes import Plan, VolumeError
from medmeta.volumes.archive import unpacked
from medmeta.volumes.dicom_header import is_dicom, read_header
from medmeta.volumes.dicom_series import Choice, Series, choose, find_series, listed
from medmeta.volumes.preflight import Stack, preflight
from medmeta.volumes.record import Volume

_MODALITIES = frozenset({"CT", "MR", "PT", "US", "MG", "CR", "DX", "NM", "XA", "OPT"})
_CALLED = {"MRI": "MR", "PET": "PT"}
# a series that is damaged may be the one that is wanted: the study is refused, not the next series taken
_DAMAGE = frozenset({"truncated-file", "truncated-pixels", "missing-pixels", "missing-slice", "bad-header"})
# summed over the axes, in octaves of voxel size: a fifth of one axis's spacing tells two series apart
_CLEAR = 0.25
_NAME = "Name one with --series KEY, --modality or --description; medmeta inspect lists them."


@dataclass(frozen=True)
class Rules:
    """What a series must be for a bundle.

    Args:
        modality: one of these DICOM modalities; any where empty.
        description: a regular expression found in SeriesDescription, or None.
        spacing: of the bundle's plan along right, anterior, superior (mm): of several series that fit, the
            nearest is taken; None leaves the axis open.
        key: the very series, by UID or short key; nothing else is then asked.

    Example:
        >>> rules = Rules(("CT",), spacing=(1.0, 1.0, 3.0))
        >>> print(rules)
        modality CT, nearest to 1 x 1 x 3 mm
    """

    modality: tuple[str, ...] = ()
    description: str | None = None
    spacing: tuple[float | None, ...] = ()
    key: str | None = None

    def __post_init__(self) -> None:
        Choice(description=self.description)  # refuses what is no regular expression

    def refusal(self, modality: str, description: str) -> str:
        """Why a series is not taken, ``""`` where it may be; a description is free text and not quoted."""
        if self.modality and modality.upper() not in self.modality:
            return f"modality {modality or 'unknown'}"
        if not _matches(self.description, description):
            return "another description"
        return ""

    def __str__(self) -> str:
        sizes = " x ".join("any" if s is None else f"{s:.3g}" for s in self.spacing)
        said = (
            f"series {self.key}" if self.key else "",
            f"modality {' or '.join(self.modality)}" if self.modality else "",
            f"description like {self.description!r}" if self.description else "",
            f"nearest to {sizes} mm" if sizes else "",
        )
        return ", ".join(part for part in said if part) or "any series"


def _matches(pattern: str | None, description: str) -> bool:
    import re

    return pattern is None or re.search(pattern, description, re.IGNORECASE) is not None


def series_rules(volumes: Iterable[Volume], description: str | None = None) -> dict[str, Any]:
    """The rules that a bundle learnt from these volumes holds in its metadata.

    Args:
        volumes: the support; its modalities are those asked for, where they are DICOM's.
        description: regular expression of the SeriesDescription.

    Raises:
        VolumeError: where that is none.

    Example:
        >>> series_rules([Volume("p", (), modality=("MRI",))], "t2.*fs")
        {'modality': ['MR'], 'description': 't2.*fs'}
    """
    Choice(description=description)
    named = {_called(m) for volume in volumes for m in volume.modality}
    found = {"modality": sorted(named & _MODALITIES), "description": description}
    return {name: value for name, value in found.items() if value}


def _called(modality: str) -> str:
    """A modality as DICOM calls it."""
    return _CALLED.get(modality.upper(), modality.upper())


def rules_of(about: Mapping[str, Any], plan: Plan, asked: Choice | None = None) -> Rules:
    """The rules of a bundle, those asked for on the command line before them.

    Args:
        about: the bundle's metadata; ``medmeta.about.series`` holds ``modality`` and ``description``.
        plan: of the bundle: Hounsfield units mean CT, and its spacing ranks what fits.
        asked: a series, a modality or a description that someone named.
    """
    own = about.get("medmeta", {}).get("about", {}).get("series", {})
    modality = tuple(own.get("modality", ())) or (("CT",) if plan.intensity == "window" else ())
    flat = plan.slice_axis if plan.spatial_dims == 2 else None
    spacing = tuple(None if axis == flat else s for axis, s in enumerate(plan.spacing))
    rules = Rules(modality, own.get("description"), spacing)
    if asked is None:
        return rules
    if asked.key is not None:
        return Rules(key=asked.key)
    return replace(
        rules,
        modality=(_called(asked.modality),) if asked.modality else rules.modality,
        description=asked.description if asked.description is not None else rules.description,
    )


@dataclass(frozen=True)
class Passed:
    """A series that was not taken.

    Args:
        series: its short key.
        modality: as DICOM says.
        why: in words.
    """

    series: str
    modality: str
    why: str


@dataclass(frozen=True)
class Chosen:
    """The series that was taken, for people and for the JSON: nothing of the patient.

    Args:
        series: its short key, as ``medmeta inspect`` shows it.
        modality, spacing_mm, slices: what it is; spacing along its own axes.
        rules: what was asked for.
        why: what decided.
        passed_over: the others.
    """

    series: str
    modality: str
    spacing_mm: tuple[float, ...]
    slices: int
    rules: str
    why: str
    passed_over: tuple[Passed, ...] = ()

    def json(self) -> dict[str, Any]:
        """For the JSON of a case; ``said`` is all of it in words."""
        return {**asdict(self), "spacing_mm": list(self.spacing_mm), "said": str(self)}

    def __str__(self) -> str:
        size = " x ".join(f"{s:.3g}" for s in self.spacing_mm)
        passed = "; ".join(f"{p.series} ({p.modality}): {p.why}" for p in self.passed_over)
        said = f"series {self.series} ({self.modality}, {self.slices} slices, {size} mm), {self.why}"
        return f"{said}; wanted {self.rules}" + (f"; passed over {passed}" if passed else "")


def pick(series: Sequence[Series], rules: Rules, where: Path) -> tuple[Stack, Chosen]:
    """The series of a study that a bundle is for.

    Modality and description decide who may be taken; what is no volume (a scout, a screenshot) is passed
    over; of several volumes the one of the nearest spacing is taken, if it is clearly nearer.

    Raises:
        VolumeError: where no series fits or several fit alike, or one that may be wanted is damaged.
    """
    images = [one for one in series if not one.is_mask]
    if rules.key is not None:
        one = choose(images, where, Choice(rules.key))
        stack = preflight(one.headers)
        return stack, _chosen(one, stack, rules, "named by its key", [])
    passed: list[Passed] = []
    fitting = []
    for one in images:
        why = rules.refusal(one.headers[0].modality, one.headers[0].description)
        passed += [_pass(one, why)] if why else []
        fitting += [] if why else [one]
    if not fitting:
        return _none(images, rules, where)
    stacks = _volumes(fitting, passed)
    order = sorted(stacks, key=lambda pair: distance(pair[1], rules))
    why = "the only one that fits" if len(images) > 1 else "the only one"
    alike = [one for one, stack in order if distance(stack, rules) - distance(order[0][1], rules) < _CLEAR]
    if len(alike) > 1:
        found = f"{len(alike)} series that fit alike: {listed(alike)}"
        raise VolumeError("several-volumes", found=found, where=where, cure=_NAME)
    if len(order) > 1:
        why = f"the nearest in spacing of {len(order)} that fit"
        passed += [_pass(one, f"voxels of {_sizes(stack)} mm") for one, stack in order[1:]]
    one, stack = order[0]
    return stack, _chosen(one, stack, rules, why, passed)


def _none(images: Sequence[Series], rules: Rules, where: Path) -> tuple[Stack, Chosen]:
    if not images:
        raise VolumeError("not-a-volume", found="no DICOM image", where=where)
    raise VolumeError(
        "no-such-series",
        found=f"none with {rules} among {listed(images)}",
        where=where,
        cure=_NAME,
    )


def _volumes(fitting: Sequence[Series], passed: list[Passed]) -> list[tuple[Series, Stack]]:
    """Those that are volumes; where none is, the refusal of the first."""
    stacks = []
    refused = []
    for one in fitting:
        try:
            stacks.append((one, preflight(one.headers)))
        except VolumeError as error:
            if error.code in _DAMAGE:
                raise
            refused.append(error)
            passed.append(_pass(one, error.found))
    if not stacks:
        raise refused[0]
    return stacks


def distance(stack: Stack, rules: Rules) -> float:
    """How far a series' voxels are from those wanted: octaves, summed over right, anterior, superior."""
    steps = np.abs(stack.affine[:3, :3])
    size = np.linalg.norm(stack.affine[:3, :3], axis=0)
    along = [float(size[int(np.argmax(steps[axis] / size))]) for axis in range(3)]
    wanted = rules.spacing or (None,) * 3
    return sum(abs(math.log2(a / w)) for a, w in zip(along, wanted, strict=True) if w is not None)


def _pass(one: Series, why: str) -> Passed:
    return Passed(one.key, one.headers[0].modality, why)


def _sizes(stack: Stack) -> str:
    return " x ".join(f"{s:.3g}" for s in np.linalg.norm(stack.affine[:3, :3], axis=0))


def _chosen(one: Series, stack: Stack, rules: Rules, why: str, passed: Sequence[Passed]) -> Chosen:
    size = tuple(round(float(s), 4) for s in np.linalg.norm(stack.affine[:3, :3], axis=0))
    return Chosen(one.key, one.headers[0].modality, size, len(stack.planes), str(rules), why, tuple(passed))


@contextlib.contextmanager
def study(path: Path, rules: Rules) -> Iterator[tuple[Stack, Chosen] | None]:
    """The series to take of a study's folder, zip or file; None where it holds no DICOM.

    A zip is unpacked while its files are needed.

    Raises:
        VolumeError: as :func:`pick`, or where a file cannot be read.
    """
    if path.name.lower().endswith(".zip") and path.is_file():
        with unpacked(path) as folder:
            yield _of_folder(folder, rules, path)
    elif path.is_dir():
        yield _of_folder(path, rules, path)
    elif path.is_file() and is_dicom(path) and (header := read_header(path)) is not None:
        yield pick([Series(header.series, (header,))], rules, path)
    else:
        yield None


def _of_folder(folder: Path, rules: Rules, named: Path) -> tuple[Stack, Chosen] | None:
    found = find_series(folder)
    return pick(found, rules, named) if found else None


def no_dicom() -> BundleError:
    """The refusal of a DICOM result for a scan that is none."""
    return BundleError(
        "a DICOM series to write a DICOM object for",
        found="a scan in another format",
        cure="Ask for nifti or json.",
    )
