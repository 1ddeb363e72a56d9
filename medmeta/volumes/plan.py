"""What is done to every volume before a network sees it, decided once a cohort."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from medmeta.volumes.fingerprint import Fingerprint, fingerprint
from medmeta.volumes.layouts import CohortError
from medmeta.volumes.progress import Track, silent
from medmeta.volumes.record import Volume

VERSION = 1
# voxels of a patch: 32^3 and 128^2 keep a second-order step of a small UNet within a second on one core
_BUDGET = {2: 128**2, 3: 32**3}
# networks halve the grid three times
_MULTIPLE = 8
_CAP = {2: 160, 3: 64}
# where whole scans are segmented; 96^3 is what trees on voxels say something of within half a minute
_COVER = {2: 256, 3: 96}


@dataclass(frozen=True)
class Plan:
    """The preprocessing of a cohort; JSON both ways, and a list of MONAI transforms.

    Args:
        spatial_dims: 2 where every image is one slice, else 3.
        spacing: mm a voxel along right, anterior, superior (all three, also in 2D).
        patch: voxels of a crop along the axes kept; the whole volume's shape where ``whole``.
        channels: images a volume.
        intensity: ``"window"`` (clip to ``low``…``high``, then minus ``mean``, by ``std``: CT, whose values
            have a unit) or ``"zscore"`` (each volume's own 0.5 and 99.5 percentile, mean and deviation).
        low, high, mean, std: of the window rule, in the images' unit.
        whole: volumes are padded or cropped to ``patch`` as a whole (to classify), not cut into crops.
        lesion: mm around the outlined lesion that are kept, the rest blanked, before padding or cropping to
            ``patch``; the outline becomes the last channel. None classifies whole scans.
        slice_axis: the axis of one voxel that is dropped in 2D.
        about: what the plan was made from, for people.
        version: of these rules.

    Example:
        >>> plan = Plan(3, (1.0, 1.0, 2.0), (32, 32, 16), 1)
        >>> Plan.from_json(plan.to_json()) == plan
        True
        >>> [t["_target_"].split(".")[-1] for t in plan.transforms()]
        ['Orientationd', 'Spacingd', 'ScaleIntensityRangePercentilesd', 'NormalizeIntensityd']
    """

    spatial_dims: int
    spacing: tuple[float, float, float]
    patch: tuple[int, ...]
    channels: int
    intensity: str = "zscore"
    low: float = 0.0
    high: float = 1.0
    mean: float = 0.0
    std: float = 1.0
    whole: bool = False
    lesion: float | None = None
    slice_axis: int = 2
    about: str = ""
    version: int = VERSION

    def __post_init__(self) -> None:
        for name in ("spacing", "patch"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        if self.version != VERSION:
            raise CohortError(
                f"a plan of version {VERSION}", found=f"version {self.version}", cure="Make the plan anew."
            )
        if len(self.patch) != self.spatial_dims or min(self.patch) < 1 or len(self.spacing) != 3:
            raise CohortError(
                f"a patch of {self.spatial_dims} positive numbers and a spacing of 3",
                found=f"patch {self.patch}, spacing {self.spacing}",
                cure="Give voxels an axis for the patch and mm an axis for the spacing.",
            )
        _positive(self.spacing)
        if self.lesion is not None and not (self.whole and 0 <= self.lesion < math.inf):
            raise CohortError(
                "0 mm or more around each lesion, in a plan to classify",
                found=f"{self.lesion} mm",
                cure="Make the plan with make_plan(volumes, lesion=4.0).",
            )
        if self.intensity not in {"window", "zscore"} or self.channels < 1:
            raise CohortError(
                "intensity 'window' or 'zscore' and at least one channel",
                found=f"{self.intensity!r}, {self.channels} channels",
                cure="Make the plan with make_plan.",
            )

    @property
    def inputs(self) -> int:
        """Channels that a network gets: the images', and the outline where lesions are classified."""
        return self.channels + (self.lesion is not None)

    def takes(self, volume: Volume) -> bool:
        """Whether the plan can prepare the volume: where lesions are classified, one with an outline."""
        return self.lesion is None or (volume.mask is not None and volume.tumour is not None)

    def to_json(self) -> str:
        """The plan as one JSON object."""
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that :meth:`to_json` wrote.

        Raises:
            CohortError: where the text is not a plan of this version.
        """
        try:
            fields = json.loads(text)
            fields["spacing"], fields["patch"] = tuple(fields["spacing"]), tuple(fields["patch"])
            return Plan(**fields)
        except (ValueError, TypeError, KeyError) as error:
            raise CohortError(
                "a plan as JSON", found=type(error).__name__, cure="Make the plan anew."
            ) from error

    @property
    def key(self) -> str:
        """Hash of everything that changes a voxel or the grid; crops of another size share a key."""
        fields = asdict(self)
        cut = () if self.lesion is None else ("whole", "patch")  # a lesion is cut from what is kept
        for name in {"about", "lesion", *cut, *(() if self.whole else ("patch",))}:
            del fields[name]
        return hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=8).hexdigest()

    def transforms(
        self, keys: Sequence[str] = ("image",), *, masks: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """The preprocessing as MONAI configuration, for ConfigParser or a bundle without medmeta.

        Args:
            keys: keys of images in the dictionary, each a MetaTensor ``(channel, x, y, z)``.
            masks: keys of binary masks, resampled linearly and cut at one half. Where lesions are
                classified, the first outlines what is cut out of the first image; images alone, or masks
                alone, come on the whole grid.

        Returns:
            One ``{"_target_": "monai.transforms.…", …}`` a step; the store applies exactly these.
        """
        both = [*keys, *masks]
        steps: list[dict[str, Any]] = [
            _step("Orientationd", both, axcodes="RAS", labels=[["L", "R"], ["P", "A"], ["I", "S"]]),
            _step(
                "Spacingd",
                both,
                pixdim=self._pixdim(),
                mode="bilinear",
                padding_mode="border",
                align_corners=True,
            ),
        ]
        if keys:
            steps += self._intensity(list(keys))
        if self.whole and self.lesion is None:
            steps.append(_step("ResizeWithPadOrCropd", both, spatial_size=self._solid(self.patch)))
        if masks:
            steps.append(_step("AsDiscreted", list(masks), threshold=0.5))
        if self.lesion is not None and keys and masks:
            steps += self.cut(keys[0], masks[0])
        if self.spatial_dims == 2:
            steps.append(_step("SqueezeDimd", both, dim=self.slice_axis + 1))
        return steps

    def cut(self, image: str = "image", mask: str = "mask") -> list[dict[str, Any]]:
        """Cut the outlined lesion out of the plan's grid, as MONAI configuration.

        The lesion and ``lesion`` mm around it stay, the rest is 0; values are standardised anew within what
        stays (not those of CT, which have a unit); the outline becomes the last channel of ``image``.
        """
        wide = float(self.lesion or 0.0) + 1e-3
        reach = [math.ceil(wide / s) + 1 for s in self.spacing]
        if self.spatial_dims == 2:
            reach[self.slice_axis] = 0
        both, near = [image, mask], "around"
        steps = [
            _step("CropForegroundd", both, source_key=mask, margin=reach, allow_smaller=True),
            _step("CopyItemsd", [mask], names=[near]),
            _step("ScaleIntensityRanged", [near], a_min=0.0, a_max=1.0, b_min=1.0, b_max=0.0),
            _step("DistanceTransformEDTd", [near], sampling=list(self.spacing)),  # mm to the lesion
            _step("ScaleIntensityRanged", [near], a_min=0.0, a_max=2 * wide, b_min=1.0, b_max=0.0),
            _step("AsDiscreted", [near], threshold=0.5),
            _step("MaskIntensityd", [image], mask_key=near),
        ]
        if self.intensity == "zscore":
            steps.append(_step("NormalizeIntensityd", [image], nonzero=True, channel_wise=True))
        return [
            *steps,
            _step("ResizeWithPadOrCropd", both, spatial_size=self._solid(self.patch)),
            _step("ConcatItemsd", both, name=image),
        ]

    def _intensity(self, keys: list[str]) -> list[dict[str, Any]]:
        if self.intensity == "window":
            bounds = {"a_min": self.low, "a_max": self.high}
            scaled = {"b_min": (self.low - self.mean) / self.std, "b_max": (self.high - self.mean) / self.std}
            return [_step("ScaleIntensityRanged", keys, **bounds, **scaled, clip=True)]
        percentiles = {"lower": 0.5, "upper": 99.5, "b_min": 0.0, "b_max": 1.0}
        return [
            _step("ScaleIntensityRangePercentilesd", keys, **percentiles, clip=True, channel_wise=True),
            _step("NormalizeIntensityd", keys, channel_wise=True),
        ]

    @property
    def sides(self) -> tuple[float, ...]:
        """mm of a voxel along each axis that a prepared image has: two of them in 2D."""
        return tuple(s for a, s in enumerate(self.spacing) if self.spatial_dims == 3 or a != self.slice_axis)

    def _pixdim(self) -> list[float]:
        """Spacing for Spacingd, where -1 keeps the thickness of a single slice."""
        return [
            -1.0 if self.spatial_dims == 2 and axis == self.slice_axis else float(s)
            for axis, s in enumerate(self.spacing)
        ]

    def _solid(self, shape: Sequence[int]) -> list[int]:
        """A shape of three axes."""
        solid = list(shape)
        if self.spatial_dims == 2:
            solid.insert(self.slice_axis, 1)
        return solid

    def _pieces(self) -> str:
        if self.lesion is not None:
            return f"lesions with {self.lesion:.3g} mm around them, in"
        return "whole volumes of" if self.whole else "crops of"

    def __str__(self) -> str:
        """The plan as people print it."""
        grid = " × ".join(f"{s:.3g}" for s in self.sides)
        patch = " × ".join(map(str, self.patch))
        rule = (
            f"clip to {self.low:.4g} … {self.high:.4g}, minus {self.mean:.4g}, by {self.std:.4g}"
            if self.intensity == "window"
            else "each volume's own 0.5 to 99.5 percentile, mean and deviation"
        )
        lines = [
            f"{self.spatial_dims}D, {self.channels} channel(s), spacing {grid} mm",
            f"{self._pieces()} {patch} voxels",
            f"intensity: {rule}",
        ]
        return "\n".join([*lines, self.about] if self.about else lines)


def _step(transform: str, keys: list[str], /, **options: Any) -> dict[str, Any]:
    return {"_target_": f"monai.transforms.{transform}", "keys": list(keys), **options}


def make_plan(
    volumes: Sequence[Volume],
    *,
    spacing: Sequence[float] | None = None,
    patch: Sequence[int] | None = None,
    whole: bool = False,
    lesion: float | None = None,
    cover: bool = False,
    track: Track = silent,
) -> Plan:
    """Decide the preprocessing from the volumes' fingerprint; give it training volumes only.

    The spacing is the median of each axis, and for a coarse axis (more than three times the finest, as
    in thick slices) its 10th percentile; CT is clipped to percentiles of the target's HU and scaled by
    their mean and deviation, everything else is standardised volume by volume (the rules of nnU-Net,
    Isensee et al. 2021, doi:10.1038/s41592-020-01008-z).

    Args:
        volumes: what to train on.
        spacing: mm along right, anterior, superior, instead of the median.
        patch: voxels of a crop, instead of one that fits the budget and the shape.
        whole: plan whole volumes of one shape, to classify; where no spacing is given, it is made coarser
            until ``patch`` (or 64 voxels an axis, 160 in 2D) holds nearly all of them.
        lesion: plan outlined lesions and so many mm around them, to classify; ``patch`` holds nearly all.
        cover: a crop holds nearly all volumes whole, for learners that look at whole scans to segment;
            where no spacing is given, it is made coarser until 96 voxels an axis (256 in 2D) do.
        track: shows progress, ``track(items, description=, total=)``.

    Raises:
        CohortError: where there is no volume, or the volumes are not alike (channels, 2D and 3D).
        VolumeError: where one cannot be read.
    """
    seen = fingerprint(volumes, track=track)
    if patch is not None and len(patch) != seen.spatial_dims:
        raise CohortError(
            f"a patch of {seen.spatial_dims} numbers", found=str(len(patch)), cure="Give voxels an axis."
        )
    grid = _spacing(seen) if spacing is None else _three(spacing)
    whole = whole or lesion is not None
    cover = cover or whole
    extent = seen.extent(grid, whole=cover) if lesion is None else seen.lesion_extent(grid, lesion)
    axes = [axis for axis in range(3) if seen.spatial_dims == 3 or axis != seen.slice_axis]
    shape = [extent[axis] for axis in axes]
    if cover and spacing is None:
        # coarser along all axes alike, and for all volumes alike, so that sizes stay comparable
        held = patch or [min(_up(n), (_CAP if whole else _COVER)[seen.spatial_dims]) for n in shape]
        scale = max(1.0, *(n / h for n, h in zip(shape, held, strict=True)))
        grid, shape = tuple(round(g * scale, 4) for g in grid), [math.ceil(n / scale - 1e-6) for n in shape]
    if patch is not None:
        chosen = tuple(int(p) for p in patch)
    else:
        chosen = tuple(map(_up, shape)) if cover else _patch([grid[axis] for axis in axes], shape)
    plan = Plan(
        seen.spatial_dims,
        (grid[0], grid[1], grid[2]),
        chosen,
        seen.channels,
        whole=whole,
        lesion=lesion,
        slice_axis=seen.slice_axis,
        about=seen.about(),
    )
    if not seen.ct:
        return plan
    low, high, mean, std = seen.window()
    return replace(plan, intensity="window", low=low, high=high, mean=mean, std=std)


def _three(spacing: Sequence[float]) -> tuple[float, ...]:
    if len(spacing) != 3:
        raise CohortError(
            "a spacing of 3 numbers in mm", found=str(len(spacing)), cure="Give right, anterior, superior."
        )
    _positive(spacing)  # before extents are divided by it
    return tuple(float(s) for s in spacing)


def _positive(spacing: Sequence[float]) -> None:
    if not all(s > 0 and math.isfinite(s) for s in spacing):
        raise CohortError("a positive spacing in mm", found=str(spacing), cure="Correct the spacing.")


def _spacing(seen: Fingerprint) -> tuple[float, ...]:
    median = [seen.spacing_quantile(axis, 0.5) for axis in range(3)]
    if seen.spatial_dims == 3:
        coarse = max(range(3), key=lambda axis: median[axis])
        if median[coarse] > 3 * min(median):
            median[coarse] = max(seen.spacing_quantile(coarse, 0.1), min(median))
    return tuple(round(m, 4) for m in median)


def _up(voxels: float) -> int:
    return max(_MULTIPLE, math.ceil(voxels / _MULTIPLE - 1e-6) * _MULTIPLE)


def _patch(spacing: Sequence[float], shape: Sequence[int]) -> tuple[int, ...]:
    """The most cubic crop in mm that fits budget and shape, a multiple of 8 along each axis."""
    patch = [_MULTIPLE] * len(shape)
    while True:
        grown = [a for a, p in enumerate(patch) if p < _up(shape[a])]
        fits = [
            a for a in grown if math.prod(patch) // patch[a] * (patch[a] + _MULTIPLE) <= _BUDGET[len(shape)]
        ]
        if not fits:
            return tuple(patch)
        patch[min(fits, key=lambda a: patch[a] * spacing[a])] += _MULTIPLE
