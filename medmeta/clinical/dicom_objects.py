"""Results as DICOM: a Segmentation beside its source series, and a report of the volumes measured."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmeta.clinical.bundle import BundleError
from medmeta.volumes.archive import unpacked
from medmeta.volumes.dicom_header import is_dicom, read_header
from medmeta.volumes.dicom_series import choose, find_series
from medmeta.volumes.preflight import Stack, preflight
from medmeta.volumes.quiet import quiet

_DATES = ("PatientBirthDate", "StudyDate", "SeriesDate", "ContentDate", "AcquisitionDate")


@contextlib.contextmanager
def source(path: Path) -> Iterator[Stack]:
    """The DICOM series of a case, in the order of the volume's slices; open while a zip's files are needed.

    Raises:
        BundleError: where the case is no DICOM.
        VolumeError: where the series cannot be read right.
    """
    if path.is_dir():
        yield _stack(path)
    elif path.name.lower().endswith(".zip"):
        with unpacked(path) as folder:
            yield _stack(folder)
    elif is_dicom(path) and (header := read_header(path)) is not None:
        yield preflight([header])
    else:
        raise _no_dicom()


def _stack(folder: Path) -> Stack:
    found = find_series(folder)
    if not found:
        raise _no_dicom()
    return preflight(choose(found, folder).headers)


def _no_dicom() -> BundleError:
    return BundleError(
        "a DICOM series to write a DICOM object for",
        found="a scan in another format",
        cure="Ask for nifti or json.",
    )


def write_seg(
    labels: NDArray[np.uint8], stack: Stack, classes: Sequence[str], file: Path, *, title: str
) -> Any:
    """Write labels as a DICOM Segmentation on the frames of its source (PS3.3 A.51), via highdicom.

    Args:
        labels: ``(x, y, z)`` on the grid that :func:`medmeta.volumes.load` gives the series.
        stack: the series.
        classes: names by label, the background first; one segment each for the others.
        file: to write.
        title: of the algorithm.

    Returns:
        The data set, and the source's data sets in order of the slices.

    Raises:
        BundleError: where the frames of the series do not correspond to the labels' slices.
    """
    import highdicom as hd

    with quiet():
        images, frames = _sources(labels, stack)
        made = hd.seg.Segmentation(
            source_images=images,
            pixel_array=frames,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_segment(n, name, title) for n, name in enumerate(classes) if n],
            series_instance_uid=hd.UID(),
            series_number=900,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="medmeta",
            manufacturer_model_name=title[:64],
            software_versions=importlib.metadata.version("medmeta"),
            device_serial_number="0",
            omit_empty_frames=bool(frames.any()),
            series_description=f"{title} (research use only)"[:64],
        )
        made.save_as(file)
    return made, images


def _segment(number: int, name: str, title: str) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    algorithm = hd.AlgorithmIdentificationSequence(
        name=title[:64],
        family=codes.DCM.ArtificialIntelligence,
        version=importlib.metadata.version("medmeta"),
    )
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Neoplasm,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_id=f"{name}-{number}"[:64],
        tracking_uid=hd.UID(),
    )


def _sources(labels: NDArray[np.uint8], stack: Stack) -> tuple[list[Any], NDArray[np.uint8]]:
    """Data sets of the source and a frame ``(rows, columns)`` of labels for each of theirs."""
    import pydicom

    frames = np.ascontiguousarray(labels.transpose(2, 1, 0))
    paths = list(dict.fromkeys(plane.header.path for plane in stack.planes))
    images = [pydicom.dcmread(path, stop_before_pixels=True, force=True) for path in paths]
    for image in images:
        _repair_dates(image)
    if len(paths) == len(stack.planes) == len(frames):
        return images, frames
    order = [plane.slice.frame for plane in stack.planes]
    if len(paths) != 1 or sorted(order) != list(range(int(images[0].NumberOfFrames))):
        raise BundleError(
            "a series of single slices, or one file with every frame of the volume",
            found=f"{len(paths)} files with {len(stack.planes)} slices of the volume",
            cure="Ask for nifti.",
        )
    return images, np.ascontiguousarray(frames[np.argsort(order)])


def _repair_dates(image: Any) -> None:
    """Blank the dates that are none (``***`` of an anonymiser), which cannot be written again."""
    for name in _DATES:
        value = str(image.get(name, "") or "")
        if value and not (len(value) == 8 and value.isdigit()):
            setattr(image, name, "")


def write_report(
    made: Any, images: Sequence[Any], volumes: dict[str, float], file: Path, *, title: str
) -> None:
    """Write the volume of every segment as a measurement report, TID 1500 (PS3.16).

    Args:
        made: the Segmentation, as :func:`write_seg` gave it.
        images: its source's data sets.
        volumes: ml of each class but the background, in the order of the segments.
        file: to write.
        title: of the algorithm.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    with quiet():
        device = hd.sr.ObserverContext(
            observer_type=codes.DCM.Device,
            observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
                uid=hd.UID(), name=title[:64]
            ),
        )
        groups = [
            _measured(made, number, name, value, images)
            for number, (name, value) in enumerate(volumes.items(), start=1)
        ]
        report = hd.sr.MeasurementReport(
            observation_context=hd.sr.ObservationContext(observer_device_context=device),
            procedure_reported=hd.sr.CodedConcept("363679005", "SCT", "Imaging procedure"),
            imaging_measurements=groups,
            title=codes.DCM.ImagingMeasurementReport,
        )
        document = hd.sr.Comprehensive3DSR(
            evidence=[*images, made],
            content=report,
            series_number=901,
            series_instance_uid=hd.UID(),
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="medmeta",
            is_complete=True,
            is_final=False,
            is_verified=False,
            series_description=f"{title} (research use only)"[:64],
        )
        document.save_as(file)


def _measured(made: Any, number: int, name: str, value: float, images: Sequence[Any]) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    described = made.SegmentSequence[number - 1]
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=described.TrackingUID, identifier=described.TrackingID
        ),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=str(made.SOPClassUID),
            sop_instance_uid=str(made.SOPInstanceUID),
            segment_number=number,
            source_series=hd.sr.SourceSeriesForSegmentation(str(images[0].SeriesInstanceUID)),
        ),
        finding_type=codes.SCT.Neoplasm,
        measurements=[
            hd.sr.Measurement(
                name=codes.SCT.Volume, value=value, unit=hd.sr.CodedConcept("ml", "UCUM", "milliliter")
            )
        ],
    )
