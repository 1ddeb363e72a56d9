"""What lies under a path: every volume with its verdict, its grid and the labels on it."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from medmeta.volumes.archive import unpacked
from medmeta.volumes.cohort import patient_key
from medmeta.volumes.dicom_header import Header
from medmeta.volumes.dicom_series import Choice, Series, dicom_files, files_below, group, listed
from medmeta.volumes.errors import VolumeError
from medmeta.volumes.headers import read_headers
from medmeta.volumes.inspected import Entry
from medmeta.volumes.keys import process_key
from medmeta.volumes.layouts.decathlon import modalities
from medmeta.volumes.layouts.labels import label_names
from medmeta.volumes.layouts.listing import CohortError, read_json, told_apart
from medmeta.volumes.loading import READERS, UNREAD, another_kind, read_file, suffix
from medmeta.volumes.mask_loading import ImageGrid, named_labels, read_mask, read_raw_mask
from medmeta.volumes.owners import base_of, index_of, is_mask, owners
from medmeta.volumes.patients import settle
from medmeta.volumes.preflight import Stack, preflight
from medmeta.volumes.progress import Track, silent
from medmeta.volumes.scan import Scan


def inspect(
    path: str | Path,
    *,
    series: str | None = None,
    modality: str | None = None,
    description: str | None = None,
    salt: str | None = None,
    workers: int | None = None,
    track: Track = silent,
) -> list[dict[str, Any]]:
    """List every volume under a path, with its verdict.

    DICOM images are judged by their headers, without reading pixels; other files are read whole, and masks
    (DICOM or in folders and names that say so) are counted on the grid of their image.

    Args:
        path: a folder, or a file of any kind that ``load`` reads.
        series: SeriesInstanceUID, or the short key of an earlier call: list that series alone.
        modality: ``"CT"``, ``"MR"`` …: list the DICOM series of it alone.
        description: list the DICOM series alone in whose SeriesDescription this regular expression is found.
        salt: what patient keys are hashed with; None takes a fresh one, so that keys of two calls differ.
        workers: processes for headers, threads for files; None takes the cores there are.
        track: ``track(items, description=, total=)`` gives the items and shows progress.

    Returns:
        One object a volume, ready for JSON: ``path``, ``ok``, ``code``, ``message``, ``patient``,
        ``modality``, ``unit``, ``shape``, ``spacing_mm``, ``affine``, ``labels``, ``warnings``, and
        ``orientation``, ``labels_ml``, ``series``.

    Raises:
        VolumeError: where there is nothing at the path, nothing that could be a volume, or no series of
            those asked for.

    Example:
        >>> import tempfile, nibabel
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("a", "a_seg"):
        ...     image = nibabel.Nifti1Image(np.ones((10, 10, 10), np.uint8), np.eye(4))
        ...     image.to_filename(folder / f"{name}.nii.gz")
        >>> [(e["path"], e["labels"], e["labels_ml"]) for e in inspect(folder)]
        [('a.nii.gz', {'1': 1000}, {'1': 1.0})]
    """
    path = Path(path)
    choice = Choice(series, modality, description)
    if not path.exists():
        raise VolumeError("not-found", found="nothing", where=path)
    salt = salt or secrets.token_hex(16)
    workers = workers or min(8, os.cpu_count() or 1)
    root = path if path.is_dir() else path.parent
    files = list(files_below(path)) if path.is_dir() else [path]
    call = _Call(salt, workers, track, choice)
    entries = _below(files, root, call)
    if choice and not any(map(choice.fits, call.seen)):
        there = f"the series {listed(call.seen)}" if call.seen else "no DICOM series"
        raise VolumeError("no-such-series", found=there, where=path)
    if not entries:
        raise VolumeError("not-a-volume", found="no image", where=path)
    return [_json(entry) for entry in sorted(entries, key=lambda entry: (entry.path, entry.series))]


@dataclass(frozen=True)
class _Call:
    salt: str
    workers: int
    track: Track
    choice: Choice
    seen: list[Series] = field(default_factory=list)  # every image series, chosen or not

    def patient(self, raw: str) -> str:
        return patient_key(raw, self.salt) if raw else ""


def _json(entry: Entry) -> dict[str, Any]:
    about = {part.name: getattr(entry, part.name) for part in fields(entry)}
    for key in ("shape", "spacing_mm", "warnings"):
        about[key] = list(about[key])
    about["affine"] = [list(row) for row in entry.affine]
    return about


def _below(files: Sequence[Path], root: Path, call: _Call) -> list[Entry]:
    entries = _dicom(list(dicom_files(files)), root, call)
    if not call.choice:  # a choice is one among DICOM series
        entries += _others([file for file in files if suffix(file) in READERS], root, call)
        entries += [Entry(_relative(file, root)).refused(another_kind(file)) for file in _unread(files)]
    for file in files:
        if suffix(file) == ".zip":
            entries += _zip(file, root, call)
    return entries


def _unread(files: Sequence[Path]) -> Iterator[Path]:
    """Volumes of formats that are not read; a pair by its header, and a header of something else is none."""
    known = {file for file in files if suffix(file) in UNREAD}
    voxels = {file.with_suffix("") for file in known if suffix(file) == ".img"}
    for file in sorted(known):
        if suffix(file) != ".img" and (suffix(file) != ".hdr" or file.with_suffix("") in voxels):
            yield file


def _zip(file: Path, root: Path, call: _Call) -> list[Entry]:
    named = _relative(file, root)
    try:
        with unpacked(file) as folder:
            found = _below(list(files_below(folder)), folder, call)
    except VolumeError as error:
        return [Entry(named).refused(error)]
    return [replace(entry, path=f"{named}/{entry.path}" if entry.path != "." else named) for entry in found]


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


# -- DICOM ----------------------------------------------------------------------------------------------


def _dicom(files: Sequence[Path], root: Path, call: _Call) -> list[Entry]:
    headers: list[Header] = []
    entries: list[Entry] = []
    unread: set[Path] = set()
    for file, found in zip(files, read_headers(files, workers=call.workers, track=call.track), strict=True):
        if isinstance(found, VolumeError):
            entries.append(Entry(_relative(file, root)).refused(found))
            unread.add(file.parent)
        elif found is not None:
            headers.append(found)
    series = group(settle(headers))
    there = [one for one in series if not one.is_mask]
    call.seen.extend(there)
    images = [_Image.of(one, root, call) for one in there if call.choice.fits(one)]
    for number, image in enumerate(images):
        if any(header.path.parent in unread for header in image.series.headers):
            images[number] = replace(
                image, entry=image.entry.warned("a file beside it cannot be read: slices may be missing")
            )
    masks = [header for one in series for header in one.headers if header.is_mask]
    if call.choice:
        masks = [header for header in masks if _image_of(header, images) is not None]
    for header in call.track(masks, description="counting labels", total=len(masks)) if masks else ():
        entries += _mask(header, images, root, call)
    return entries + [image.entry for image in images]


@dataclass
class _Image:
    """An image series with its verdict."""

    series: Series
    stack: Stack | None
    entry: Entry

    @classmethod
    def of(cls, series: Series, root: Path, call: _Call) -> _Image:
        first = series.headers[0]
        entry = Entry(
            _place(series, root),
            patient=call.patient(first.patient),
            modality=first.modality,
            unit=first.unit.name,
            series=series.key,
        )
        try:
            stack = preflight(series.headers)
        except VolumeError as error:
            return cls(series, None, entry.refused(error))
        return cls(series, stack, entry.on(stack.affine, stack.shape).warned(*stack.warnings))


def _place(series: Series, root: Path) -> str:
    """A file for one file, else the folder that all of them lie under."""
    paths = [header.path for header in series.headers]
    if len(paths) == 1:
        return _relative(paths[0], root)
    return _relative(Path(os.path.commonpath([path.parent for path in paths])), root)


def _mask(header: Header, images: list[_Image], root: Path, call: _Call) -> list[Entry]:
    """Count a segmentation on its image; an entry of its own where there is something to say of it alone."""
    alone = Entry(
        _relative(header.path, root), patient=call.patient(header.patient), modality=header.modality
    )
    image = _image_of(header, images)
    try:
        if image is None or image.stack is None:
            why = "is not here" if image is None else "cannot be read"
            names = named_labels(header.path)
            return [
                alone.warned(f"the image it belongs to {why}", f"its labels: {', '.join(names.values())}")
            ]
        first = image.series.headers[0]
        keys = process_key(first.frame_of_reference), process_key(first.series)
        labels = _counted(header.path, ImageGrid(image.stack.affine, image.stack.shape, *keys))
    except VolumeError as error:
        return [alone.refused(error)]
    image.entry = image.entry.with_labels(labels, _relative(header.path, root))
    return []


def _image_of(header: Header, images: Sequence[_Image]) -> _Image | None:
    """The series it names; else the only one in its frame of reference."""
    named = [image for image in images if image.series.uid in header.segmented]
    if not header.segmented:
        frame = header.frame_of_reference
        named = [image for image in images if frame and image.series.headers[0].frame_of_reference == frame]
    return named[0] if len(named) == 1 else None


def _counted(path: Path, like: ImageGrid) -> dict[str, int]:
    """Voxels of each label by name; segments that overlap are counted one by one."""
    try:
        mask, names = read_mask(path, like)
        values, counts = np.unique(mask[mask > 0], return_counts=True)
        found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    except VolumeError as error:
        if error.code not in ("overlapping-segments", "bad-contour"):
            raise
        found, names = _one_by_one(path, like)
        if not names:
            raise
    called = [names.get(number, str(number)) for number in found]
    return {
        name if called.count(name) == 1 else f"{name} ({number})": count
        for name, (number, count) in zip(called, found.items(), strict=True)
    }


def _one_by_one(path: Path, like: ImageGrid) -> tuple[dict[int, int], dict[int, str]]:
    names = named_labels(path)
    found = {}
    for number in names:
        try:
            found[number] = int(read_mask(path, like, number)[0].sum())
        except VolumeError as error:
            if error.code not in ("missing-label", "empty-mask"):
                raise
    return found, names


# -- NIfTI and the rest -----------------------------------------------------------------------------------


def _others(files: Sequence[Path], root: Path, call: _Call) -> list[Entry]:
    masks = [file for file in files if is_mask(file, root)]
    images = [file for file in files if not is_mask(file, root)]
    if not images and len(files) == 1:  # a mask looked at alone
        images, masks = masks, []
    owned: dict[Path, list[Path]] = {}
    entries = []
    index = index_of(images)
    for mask in masks:
        own = owners(mask, index)
        for image in own:
            owned.setdefault(image, []).append(mask)
        if not own:
            entries.append(mask)
    names = {image: base_of(owned[image][0] if image in owned else image) for image in images}
    patients = told_apart(names, root)
    with ThreadPoolExecutor(call.workers) as pool:
        seen = pool.map(lambda file: _look(file, owned.get(file, []), patients[file], root, call), images)
        lonely = pool.map(lambda file: _lonely(file, root, call), entries)
        found = itertools.chain.from_iterable(itertools.chain(seen, ([entry] for entry in lonely)))
        total = len(images) + len(entries)
        return list(call.track(found, description="reading files", total=total)) if total else []


def _look(file: Path, masks: Sequence[Path], whose: str, root: Path, call: _Call) -> list[Entry]:
    """An image with its masks counted, and each mask that does not fit."""
    patient = call.patient(whose)
    entry = Entry(_relative(file, root), patient=patient)
    try:
        scan, modality = _scan(file)
    except VolumeError as error:
        return [entry.refused(error)]
    entry = replace(entry, modality=modality)
    shape = scan.array.shape[1:]
    entry = replace(entry, unit=scan.unit).on(scan.affine, shape).warned(*scan.warnings)
    if not scan.spaced:
        entry = replace(entry, spacing_mm=()).warned("voxel size unknown")
    refused = []
    for mask in masks:
        try:
            labels = _counted(mask, ImageGrid(scan.affine, shape))
            entry = entry.with_labels(_named(mask, labels), _relative(mask, root))
        except VolumeError as error:
            if error.code == "empty-mask":
                entry = entry.warned("the mask is empty")
            else:
                refused.append(Entry(_relative(mask, root), patient=patient).refused(error))
    if not scan.spaced:
        entry = replace(entry, labels_ml={})
    return [entry, *refused]


def _scan(file: Path) -> tuple[Scan, str]:
    """A file's volume; one of several where a dataset.json above it names them as channels."""
    try:
        return read_file(file), ""
    except VolumeError as error:
        named = modalities(_about(file)) if error.code == "several-times-file" else ()
        if len(named) < 2:
            raise
        return read_file(file, channels=len(named)), "+".join(named)


def _about(file: Path) -> dict[str, Any]:
    """What the dataset.json one or two folders above says, ``{}`` where there is none that can be read."""
    for folder in (file.parent, file.parent.parent):
        if (folder / "dataset.json").is_file():
            try:
                return read_json(folder / "dataset.json")
            except (CohortError, OSError):  # what it says is a comfort, no finding here
                return {}
    return {}


def _lonely(file: Path, root: Path, call: _Call) -> Entry:
    """A mask without its image: counted on its own grid."""
    entry = Entry(_relative(file, root), patient=call.patient(base_of(file)))
    try:
        scan, mask = read_raw_mask(file)
    except VolumeError as error:
        return entry.refused(error)
    values, counts = np.unique(mask[mask > 0], return_counts=True)
    labels = {str(value): int(count) for value, count in zip(values, counts, strict=True)}
    entry = _gridded(entry, scan, mask.shape)
    return entry.with_labels(_named(file, labels), entry.path).warned("a mask without its image")


def _gridded(entry: Entry, scan: Scan, shape: tuple[int, ...]) -> Entry:
    return entry.on(scan.affine, shape).warned(*scan.warnings)


def _named(mask: Path, labels: dict[str, int]) -> dict[str, int]:
    """Label values by the names that a dataset.json above them gives."""
    try:
        names = label_names(_about(mask))
    except CohortError:
        return labels
    return {names.get(int(k), k) if k.isdecimal() else k: count for k, count in labels.items()}
