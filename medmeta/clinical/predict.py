"""From a scan in a hospital's file or archive to a mask on the scan's own grid, case by case."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medmeta.clinical.bundle import BundleError
from medmeta.clinical.cases import Input, Source, name_cases, opened, writable
from medmeta.clinical.choose import rules_of
from medmeta.clinical.dicom_objects import Maker
from medmeta.clinical.loading import BundlePredictor, load_bundle
from medmeta.clinical.origin import Origin, parts, refuse_other
from medmeta.clinical.outputs import SUFFIXES, Scanned, refuse_formats, write_json, write_segmentation
from medmeta.clinical.pacs import Study
from medmeta.clinical.pairing import refuse_crossed
from medmeta.clinical.stopping import remove
from medmeta.clinical.whole import classify, segment
from medmeta.errors import MedmetaError
from medmeta.volumes import load_mask
from medmeta.volumes.dicom_series import Choice
from medmeta.volumes.progress import Track, silent

_LOG = logging.getLogger("medmeta.clinical")


def predict(
    bundle: BundlePredictor | Input,
    inputs: Iterable[Input | Sequence[Input] | Study],
    out: Input,
    *,
    masks: Iterable[Input] | None = None,
    formats: Sequence[str] = ("nifti",),
    series: Choice | None = None,
    resume: bool = False,
    tell: Callable[[dict[str, Any]], None] | None = None,
    track: Track = silent,
) -> list[dict[str, Any]]:
    """Apply a bundle to whole scans.

    Segmenting writes ``OUT/<case>/<case>_seg.nii.gz`` and what else is asked for: whole-number labels on the
    scan's own grid. Classifying writes ``OUT/<case>/<case>.json`` with the class and every probability. A
    case is named by its file or folder, all by the folders above too where two would share a name; a study of
    an archive by a keyed hash. Each case appears when it is whole; one that fails does not stop the others.

    Args:
        bundle: its folder, or what :func:`medmeta.clinical.load_bundle` gave.
        inputs: a NIfTI file, the folder or zip of a DICOM study, a study of an archive, or a sequence of
            files, one a channel, ``"t1.nii.gz;t2.nii.gz"`` too. Of a study's series the bundle's rules choose
            one.
        masks: where lesions are classified, the file that outlines each scan's lesion, in the order of
            ``inputs``; refused where one is called as another of these scans.
        out: folder to write; cases that are there are refused unless ``resume``. With each is a hidden file
            that says by hashes of which scan and bundle it is.
        formats: of a segmentation, among :data:`medmeta.clinical.outputs.FORMATS`: ``"seg"`` writes a DICOM
            Segmentation and ``"sr"`` a measurement report beside it (TID 1500), both for DICOM scans;
            ``"json"`` what was measured; ``"png"`` and ``"html"`` pictures.
        series: asks for a series, a modality or a description instead of the bundle's rules.
        resume: pass over the cases that are there, of this very scan and bundle and in all the formats; one
            that lacks a format is made again, and one of another scan or bundle fails and is left as it is.
        tell: is given each case's object as soon as it is done.
        track: shows progress.

    Returns:
        One object a case: ``case``, ``ok``, ``message``, ``files`` (relative to ``out``), ``skipped``, and
        of a case that was not skipped:
        ``series`` (which was chosen, and why) and ``warnings``; and ``class`` and ``probabilities``, or
        ``voxels``, ``volume_ml``, ``lesion_count`` and diameters of every class but the background; and how
        sure that is: ``confidence`` (calibrated), ``distance`` from the support, its ``threshold``, and
        ``abstain`` where the scan lies beyond it (None where the bundle cannot say).

    Raises:
        BundleError: where the bundle is not to be trusted, there is no input, or ``out`` has one of the
            cases or cannot be written.
    """
    refuse_formats(formats)
    predictor = bundle if isinstance(bundle, BundlePredictor) else load_bundle(bundle)
    job = _Job(predictor, Path(out), tuple(formats), series)
    cases = job.cases(inputs, masks, resume=resume)
    writable(job.out)
    results = []
    for case in track(cases, description="predicting", total=len(cases)):
        results.append(job.done(case))
        if tell is not None:
            tell(results[-1])
    return results


@dataclass(frozen=True)
class _Case:
    """One scan to predict.

    Args:
        name: of its folder.
        source: where the scan is.
        mask: file that outlines its lesion, where lesions are classified.
        there: whether an earlier run has done it.
    """

    name: str
    source: Source
    mask: Path | None
    there: bool


def _refuse_store(predictor: BundlePredictor, cases: Mapping[str, Source], formats: Sequence[str]) -> None:
    """Nothing to store would be a result that nobody finds."""
    storing = any(isinstance(one, Study) and one.archive.store for one in cases.values())
    if storing and not (predictor.task == "segmentation" and {"seg", "sr"} & set(formats)):
        raise BundleError(
            "DICOM results to store: a bundle that segments, and formats seg or sr",
            found=f"{predictor.task} as {', '.join(formats)}",
            cure="Give --formats seg,sr, or leave --store out.",
        )


def _outlines(
    predictor: BundlePredictor, cases: Mapping[str, Source], masks: Iterable[Input] | None
) -> dict[str, Path]:
    """The mask of each case, where the bundle classifies lesions."""
    given = [Path(m) for m in masks or ()]
    wanted = len(cases) if predictor.plan.lesion is not None else 0
    if len(given) != wanted:
        raise BundleError(
            f"{wanted} mask(s), one a scan, that outline the lesions to classify" if wanted else "no masks",
            found=str(len(given)),
            cure="Give --mask FILE for each scan; a segmentation bundle can make it."
            if wanted
            else "Leave --mask out: this bundle needs none.",
        )
    if given:
        refuse_crossed([() if isinstance(one, Study) else one for one in cases.values()], given)
    return dict(zip(cases, given, strict=False))


@dataclass(frozen=True)
class _Job:
    """What all cases of a run share."""

    predictor: BundlePredictor
    out: Path
    formats: tuple[str, ...]
    series: Choice | None

    def cases(
        self,
        inputs: Iterable[Input | Sequence[Input] | Study],
        masks: Iterable[Input] | None,
        *,
        resume: bool,
    ) -> list[_Case]:
        """All cases by name; refused where one is there and was not to be passed over."""
        named = name_cases(inputs, self.out)
        _refuse_store(self.predictor, named, self.formats)
        outlines = _outlines(self.predictor, named, masks)
        cases = [
            _Case(name, source, outlines.get(name), (self.out / name).exists())
            for name, source in named.items()
        ]
        there = sum(case.there for case in cases)
        if there and not resume:
            raise BundleError(
                "a folder without these cases",
                found=f"{there} of {len(cases)} there",
                cure="Give another --out, or --resume to pass over them.",
            )
        return cases

    def done(self, case: _Case) -> dict[str, Any]:
        """One case, whole or not at all; its result says which."""
        result: dict[str, Any] = {
            "case": case.name,
            "ok": False,
            "message": "",
            "files": [],
            "skipped": False,
        }
        try:
            found = self._again(case) if case.there else self._once(case, self.formats)
            return {**result, **found, "ok": True}
        except MedmetaError as error:
            return {**result, "message": str(error)}
        except OSError as error:
            return {**result, "message": f"cannot read or write: {error.strerror or type(error).__name__}"}
        except Exception as error:  # noqa: BLE001 - torch's, MONAI's, memory's; the next case must be tried
            # what such an error says may quote the scan's header: shown to who asks for it, kept nowhere
            _LOG.debug("a case failed; its result says which", exc_info=True)
            return {**result, "message": str(_unforeseen(error))}

    def _once(self, case: _Case, formats: Sequence[str]) -> dict[str, Any]:
        """Make a case; what there was of it at the start is exchanged when it is whole."""
        temporary, folder = self.out / f".{case.name}.{secrets.token_hex(4)}", self.out / case.name
        try:
            found = self._written(case, temporary, formats)
            if case.there:
                refuse_other(folder, self._parts(case), self.predictor.manifest)
                _exchange(temporary, folder)
            else:
                os.replace(temporary, folder)  # refuses a folder that another program has put there meanwhile
        finally:
            remove(temporary)
        return {**found, "files": self._files(case)}

    def _again(self, case: _Case) -> dict[str, Any]:
        """A case that is there: passed over where it is this one, but stored where it was not."""
        folder = self.out / case.name
        kept = refuse_other(folder, self._parts(case), self.predictor.manifest)
        if not all((folder / f"{case.name}{suffix}").is_file() for suffix in self._suffixes()):
            return self._once(case, sorted({*self.formats, *kept.formats}))
        return {"skipped": True, "files": self._files(case), **_stored(case.source, folder)}

    def _files(self, case: _Case) -> list[str]:
        """What a reader of the results finds of a case."""
        there = sorted(f.name for f in (self.out / case.name).iterdir() if not f.name.startswith("."))
        return [f"{case.name}/{name}" for name in there]

    def _suffixes(self) -> list[str]:
        """Of the files that a case has when it is done."""
        if self.predictor.task == "classification":
            return [".json"]
        return [SUFFIXES[name] for name in self.formats]

    def _parts(self, case: _Case) -> list[str]:
        """What tells this very case from others of its name."""
        paths = () if isinstance(case.source, Study) else case.source
        asked = self.series or Choice()
        return list(parts(case.name, paths, case.mask, (asked.key, asked.modality, asked.description)))

    def _written(self, case: _Case, folder: Path, formats: Sequence[str]) -> dict[str, Any]:
        """Everything in a temporary folder, and in the archive where that is asked for."""
        predictor, stem = self.predictor, folder / case.name
        rules = rules_of(predictor.about, predictor.plan, self.series)
        with opened(case.source, predictor.plan.channels, rules) as scanned:
            folder.mkdir()
            Origin.of(self._parts(case), predictor.manifest, formats).save(folder)
            if predictor.task == "classification":
                return _classify(predictor, scanned, case.mask, stem.with_name(f"{case.name}.json"))
            found = segment(predictor, scanned.image)
            maker = Maker(str(predictor.about.get("name", "medmeta")), predictor.manifest)
            facts = write_segmentation(found, scanned, predictor.classes, stem, formats, maker)
        return {**facts, **_stored(case.source, folder)}


def _unforeseen(error: Exception) -> BundleError:
    """What is said of an error that another library raised: what it is, and nothing of its own words."""
    return BundleError(
        "a scan that can be predicted",
        found=f"an error of the kind {type(error).__name__}",
        cure="Run this scan alone with medmeta --debug, which shows where; that may quote its header.",
    )


def _exchange(made: Path, folder: Path) -> None:
    """Put a case where an older one of its name is, which goes when the new one is there."""
    older = made.with_name(f"{made.name}.older")
    try:
        os.replace(folder, older)
        os.replace(made, folder)
    except BaseException:  # a signal, too, at any moment: the older one is better than none
        if not folder.exists():
            os.replace(older, folder)
        raise
    finally:
        remove(older)


def _stored(source: Source, folder: Path) -> dict[str, Any]:
    """Store a case's DICOM results in the archive it came from, a report after the segmentation."""
    if not isinstance(source, Study) or not source.archive.store:
        return {}
    return {"stored": source.keep(sorted(folder.glob("*.dcm"), key=lambda f: f.name.endswith("_sr.dcm")))}


def _classify(predictor: BundlePredictor, scanned: Scanned, mask: Path | None, file: Path) -> dict[str, Any]:
    outline = load_mask(mask, like=scanned.image) if mask is not None else None
    soft, sure = classify(predictor, scanned.image, outline)
    found = {
        "class": predictor.classes[int(np.argmax(soft))],
        "probabilities": {c: round(p, 6) for c, p in zip(predictor.classes, soft, strict=True)},
        **sure,
        **scanned.facts(),
    }
    write_json({"case": file.stem, **found}, file)
    return found
