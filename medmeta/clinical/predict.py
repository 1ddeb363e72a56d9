"""From a scan in a hospital's file to a mask on the scan's own grid, case by case."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from medmeta.clinical.bundle import BundleError
from medmeta.clinical.loading import BundlePredictor, load_bundle
from medmeta.clinical.whole import Segmented, probabilities, segment
from medmeta.errors import MedmetaError
from medmeta.volumes import load, load_mask
from medmeta.volumes.progress import Track, silent

_LOG = logging.getLogger("medmeta.clinical")
_SUFFIXES = (".nii.gz", ".nii", ".zip", ".nrrd", ".mha", ".dcm")

FORMATS = ("nifti", "seg", "sr", "json")
"""What a segmentation can be written as."""

Input: TypeAlias = str | os.PathLike[str]


def predict(
    bundle: BundlePredictor | Input,
    inputs: Iterable[Input | Sequence[Input]],
    out: Input,
    *,
    masks: Iterable[Input] | None = None,
    formats: Sequence[str] = ("nifti",),
    resume: bool = False,
    track: Track = silent,
) -> list[dict[str, Any]]:
    """Apply a bundle to whole scans.

    Segmenting writes ``OUT/<case>/<case>_seg.nii.gz`` (or ``_seg.dcm``, ``_sr.dcm``, ``.json``): whole-number
    labels on the scan's own grid. Classifying writes ``OUT/<case>/<case>.json`` with the class and every
    probability. A case is named by its file or folder, all by the folders above too where two would share
    a name. Each case appears when it is whole; one that fails does not stop the others.

    Args:
        bundle: its folder, or what :func:`medmeta.clinical.load_bundle` gave.
        inputs: a NIfTI file, the folder or zip of one DICOM series each, or a sequence of them, one
            a channel.
        masks: where lesions are classified, the file that outlines each scan's lesion, in the order of
            ``inputs``.
        out: folder to write; cases that are there are refused unless ``resume``.
        formats: of a segmentation, among :data:`FORMATS`: ``"seg"`` writes a DICOM Segmentation and
            ``"sr"`` a measurement report beside it (TID 1500), both for DICOM scans;
            ``"json"`` the volumes found.
        resume: pass over the cases that are there.
        track: shows progress.

    Returns:
        One object a case: ``case``, ``ok``, ``message``, ``files`` (relative to ``out``), ``skipped``; and
        ``class`` and ``probabilities``, or ``voxels`` and ``volume_ml`` of every class but the background.

    Raises:
        BundleError: where the bundle is not to be trusted, there is no input, or ``out`` has one of the
            cases.
    """
    _refuse_formats(formats)
    predictor = bundle if isinstance(bundle, BundlePredictor) else load_bundle(bundle)
    cases = name_cases(inputs)
    outlines = _outlines(predictor, list(cases), masks)
    folder = Path(out)
    there = [name for name in cases if (folder / name).exists()]
    if there and not resume:
        raise BundleError(
            "a folder without these cases",
            found=f"{len(there)} of {len(cases)} there",
            cure="Give another --out, or --resume to pass over them.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for name in track(cases, description="predicting", total=len(cases)):
        if name in there:
            results.append({"case": name, "ok": True, "message": "", "files": [], "skipped": True})
        else:
            results.append(_case(predictor, name, cases[name], folder, formats, outlines.get(name)))
    return results


def _outlines(
    predictor: BundlePredictor, names: Sequence[str], masks: Iterable[Input] | None
) -> dict[str, Path]:
    """The mask of each case, where the bundle classifies lesions."""
    given = [Path(m) for m in masks or ()]
    wanted = len(names) if predictor.plan.lesion is not None else 0
    if len(given) != wanted:
        raise BundleError(
            f"{wanted} mask(s), one a scan, that outline the lesions to classify" if wanted else "no masks",
            found=str(len(given)),
            cure="Give --mask FILE for each scan; a segmentation bundle can make it."
            if wanted
            else "Leave --mask out: this bundle needs none.",
        )
    return dict(zip(names, given, strict=False))


def name_cases(inputs: Iterable[Input | Sequence[Input]]) -> dict[str, tuple[Path, ...]]:
    """Name every case by its file or folder, with as many folders above as it takes to tell them apart.

    Raises:
        BundleError: where there is no input, or one is there twice.

    Example:
        >>> list(name_cases(["a/scan.nii.gz", "p1/image", "p2/image"]))
        ['a_scan', 'p1_image', 'p2_image']
    """
    paths = [(Path(i),) if isinstance(i, (str, os.PathLike)) else tuple(Path(p) for p in i) for i in inputs]
    absolute = [tuple(p.absolute() for p in case) for case in paths]
    if not paths or not all(paths) or len(set(absolute)) != len(absolute):
        raise BundleError(
            "one or more different scans",
            found=f"{len(paths)} with doubles" if paths else "none",
            cure="Name each scan once.",
        )
    parts = [_parts(case[0]) for case in absolute]
    for depth in range(1, max(map(len, parts)) + 1):
        named = ["_".join(p[-depth:]) for p in parts]
        if len(set(named)) == len(paths):
            return dict(zip(named, paths, strict=True))
    raise BundleError("scans that can be told apart by name", found="two alike", cure="Rename one.")


def _parts(path: Path) -> tuple[str, ...]:
    """Folders and name without its suffix."""
    stem = next((path.name[: -len(s)] for s in _SUFFIXES if path.name.lower().endswith(s)), path.name)
    return (*path.parts[1:-1], stem or "case")


def _refuse_formats(formats: Sequence[str]) -> None:
    if not formats or not set(formats) <= set(FORMATS):
        raise BundleError(
            f"formats among {', '.join(FORMATS)}",
            found=", ".join(formats) or "none",
            cure="Name one or more of them.",
        )


def _case(
    predictor: BundlePredictor,
    name: str,
    paths: tuple[Path, ...],
    out: Path,
    formats: Sequence[str],
    mask: Path | None = None,
) -> dict[str, Any]:
    temporary = out / f".{name}.{secrets.token_hex(4)}"
    done: dict[str, Any] = {"case": name, "ok": False, "message": "", "files": [], "skipped": False}
    try:
        image = read_channels(paths, predictor.plan.channels)
        temporary.mkdir()
        if predictor.task == "segmentation":
            segmented = segment(predictor, image)
            _write_segmentation(predictor, segmented, paths[0], temporary / name, formats)
            found = segmented.facts
        else:
            found = _classify(predictor, image, mask, temporary / f"{name}.json")
        os.replace(temporary, out / name)
        files = [f"{name}/{file.name}" for file in sorted((out / name).iterdir())]
        return {**done, **found, "ok": True, "files": files}
    except MedmetaError as error:
        return {**done, "message": str(error)}
    except OSError as error:
        return {**done, "message": f"cannot write: {error.strerror or type(error).__name__}"}
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        # torch's, MONAI's and highdicom's; the next case must still be tried
        _LOG.exception("a case failed; its result says which")
        return {**done, "message": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_channels(paths: Sequence[Path], channels: int = 1) -> Any:
    """All channels of a scan as one MetaTensor ``(channel, x, y, z)``.

    Args:
        paths: one a channel, or one NIfTI with the channels on its fourth axis.
        channels: how many there are to be.

    Raises:
        VolumeError: where a file cannot be read right.
        CohortError: where they are not on one grid.
    """
    from medmeta.volumes.reading import read_image
    from medmeta.volumes.record import Volume

    if len(paths) > 1:
        return read_image(Volume("", tuple(paths)))
    several = channels > 1 and paths[0].name.lower().endswith((".nii", ".nii.gz"))
    return load(paths[0], channels=channels if several else 1)


def _write_segmentation(
    predictor: BundlePredictor, found: Segmented, path: Path, stem: Path, formats: Sequence[str]
) -> None:
    """Write ``<stem>_seg.nii.gz``, ``_seg.dcm``, ``_sr.dcm`` and ``.json``, as asked."""
    if "nifti" in formats:
        write_nifti(found.labels, found.affine, stem.with_name(f"{stem.name}_seg.nii.gz"))
    if "json" in formats:
        stem.with_name(f"{stem.name}.json").write_text(
            json.dumps({"case": stem.name, **found.facts}, indent=1) + "\n"
        )
    if not {"seg", "sr"} & set(formats):
        return
    from medmeta.clinical.dicom_objects import source, write_report, write_seg

    title = str(predictor.about.get("name", "medmeta"))
    with source(path) as stack:
        file = stem.with_name(f"{stem.name}_seg.dcm")
        made, images = write_seg(found.labels, stack, predictor.classes, file, title=title)
    if "sr" in formats:
        report = stem.with_name(f"{stem.name}_sr.dcm")
        write_report(made, images, found.facts["volume_ml"], report, title=title)


def write_nifti(labels: np.ndarray[Any, Any], affine: np.ndarray[Any, Any], file: Path) -> None:
    """Write labels ``(x, y, z)`` with their RAS affine in mm."""
    import nibabel

    image = nibabel.Nifti1Image(labels, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, file)


def _classify(predictor: BundlePredictor, image: Any, mask: Path | None, file: Path) -> dict[str, Any]:
    outline = load_mask(mask, like=image) if mask is not None else None
    soft = probabilities(predictor, image, outline).tolist()
    found = {
        "class": predictor.classes[int(np.argmax(soft))],
        "probabilities": {c: round(p, 6) for c, p in zip(predictor.classes, soft, strict=True)},
    }
    file.write_text(json.dumps({"case": file.stem, **found}, indent=1) + "\n")
    return found
