"""Results as DICOM: a Segmentation beside its source series, and a report of what was measured in it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmeta.clinical.bundle import BundleError
from medmeta.clinical.measure import Measured
from medmeta.clinical.property_codes import kind_of
from medmeta.clinical.source_header import mend
from medmeta.clinical.uids import derived
from medmeta.volumes.preflight import Stack
from medmeta.volumes.quiet import quiet

_LOG = logging.getLogger("medmeta.clinical")


@dataclass(frozen=True)
class Maker:
    """Who made a result: the bundle.

    Args:
        title: name of the algorithm.
        manifest: hash of the bundle's manifest, from which UIDs are derived.
    """

    title: str
    manifest: str = ""


def write_seg(
    labels: NDArray[np.uint8], stack: Stack, classes: Sequence[str], file: Path, *, maker: Maker
) -> Any:
    """Write labels as a DICOM Segmentation on the frames of its source (PS3.3 A.51), via highdicom.

    Its series is that of this bundle's results on this series, its instance that of these very labels: made
    again, they have the same UIDs. The patient's and study's fields are those of the source.

    Args:
        labels: ``(x, y, z)`` on the grid that :func:`medmeta.volumes.load` gives the series.
        stack: the series.
        classes: names by label, the background first; one segment each for the others.
        file: to write.
        maker: the bundle.

    Returns:
        The data set, and the source's data sets in order of the slices.

    Raises:
        BundleError: where the frames of the series do not correspond to the labels' slices, or its header
            lacks what a result needs.
    """
    import highdicom as hd

    with quiet(), _from_its_header("a DICOM Segmentation"):
        images, frames = _sources(labels, stack)
        same = _origin(images, maker)
        content = hashlib.sha256(labels.tobytes()).hexdigest()
        instances = (str(image.SOPInstanceUID) for image in images)
        made = hd.seg.Segmentation(
            source_images=images,
            pixel_array=frames,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[
                _segment(n, name, maker, derived("lesions", *same, name))
                for n, name in enumerate(classes)
                if n
            ],
            series_instance_uid=derived("seg series", *same),
            series_number=900,
            sop_instance_uid=derived("seg", *same, *classes, *instances, content),
            instance_number=1,
            manufacturer="medmeta",
            manufacturer_model_name=maker.title[:64],
            software_versions=importlib.metadata.version("medmeta"),
            device_serial_number="0",
            omit_empty_frames=bool(frames.any()),
            series_description=f"{maker.title} (research use only)"[:64],
        )
        _name_dimensions(made, derived("dimensions", str(made.SOPInstanceUID)))
        made.save_as(file)
    return made, images


@contextlib.contextmanager
def _from_its_header(what: str) -> Iterator[None]:
    """One refusal for all that highdicom finds wrong with a header; its own words may quote it."""
    try:
        yield
    except (BundleError, OSError, MemoryError):
        raise
    except Exception as error:
        _LOG.debug("a header that no result can be made of", exc_info=True)
        raise BundleError(
            f"a header of the source from which {what} can be made",
            found=f"one that gives {type(error).__name__}",
            cure="Ask for nifti or json alone, or have the header mended; medmeta --debug shows where.",
        ) from error


def _origin(images: Sequence[Any], maker: Maker) -> tuple[str, str, str]:
    """Study, series and bundle."""
    return str(images[0].StudyInstanceUID), str(images[0].SeriesInstanceUID), maker.manifest


def _name_dimensions(made: Any, uid: str) -> None:
    """Give the dimension organisation, which highdicom names at random, a UID that is the same again."""
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid


def _segment(number: int, name: str, maker: Maker, uid: str) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    category, kind = kind_of(name)
    algorithm = hd.AlgorithmIdentificationSequence(
        name=maker.title[:64],
        family=codes.DCM.ArtificialIntelligence,
        version=importlib.metadata.version("medmeta"),
    )
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=getattr(codes.SCT, category),
        segmented_property_type=getattr(codes.SCT, kind),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_id=f"{name}-{number}"[:64],
        tracking_uid=uid,
    )


def _sources(labels: NDArray[np.uint8], stack: Stack) -> tuple[list[Any], NDArray[np.uint8]]:
    """Data sets of the source and a frame ``(rows, columns)`` of labels for each of theirs."""
    import pydicom

    frames = np.ascontiguousarray(labels.transpose(2, 1, 0))
    paths = list(dict.fromkeys(plane.header.path for plane in stack.planes))
    images = [pydicom.dcmread(path, stop_before_pixels=True, force=True) for path in paths]
    for image in images:
        mend(image)
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


def write_report(
    made: Any, images: Sequence[Any], measured: Mapping[str, Measured], file: Path, *, maker: Maker
) -> None:
    """Write volume, longest diameters and number of lesions as a measurement report, TID 1500 (PS3.16).

    Args:
        made: the Segmentation, as :func:`write_seg` gave it; the report refers to its segments.
        images: its source's data sets.
        measured: what was measured of each class but the background, in the order of the segments.
        file: to write.
        maker: the bundle.

    Raises:
        BundleError: where the source's header lacks what a report needs.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    same = _origin(images, maker)
    facts = json.dumps([m.json() for m in measured.values()], sort_keys=True)
    with quiet(), _from_its_header("a DICOM report"):
        device = hd.sr.ObserverContext(
            observer_type=codes.DCM.Device,
            observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
                uid=derived("bundle", maker.manifest), name=maker.title[:64]
            ),
        )
        groups = [
            _measured(made, number, name, one, images)
            for number, (name, one) in enumerate(measured.items(), start=1)
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
            series_instance_uid=derived("sr series", *same),
            sop_instance_uid=derived("sr", *same, str(made.SOPInstanceUID), facts),
            instance_number=1,
            manufacturer="medmeta",
            is_complete=True,
            is_final=False,
            is_verified=False,
            series_description=f"{maker.title} (research use only)"[:64],
        )
        document.save_as(file)


def _measured(made: Any, number: int, name: str, found: Measured, images: Sequence[Any]) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    described = made.SegmentSequence[number - 1]
    measurements = [
        hd.sr.Measurement(
            name=codes.SCT.Volume,
            value=found.volume_ml,
            unit=hd.sr.CodedConcept("ml", "UCUM", "milliliter"),
        ),
        hd.sr.Measurement(name=codes.SCT.NumberOfLesions, value=found.lesion_count, unit=codes.UCUM.NoUnits),
    ]
    if found.lesion_count:
        measurements += [
            hd.sr.Measurement(
                name=codes.SCT.LongAxis,
                value=found.longest_diameter_mm,
                unit=codes.UCUM.Millimeter,
                derivation=codes.SCT.Maximum,
                method=codes.DCM.RECIST1Point1,
            ),
            hd.sr.Measurement(
                name=codes.IBSI.Maximum3DDiameterOfAMesh,
                value=found.longest_diameter_3d_mm,
                unit=codes.UCUM.Millimeter,
                derivation=codes.SCT.Maximum,
            ),
        ]
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
        finding_type=getattr(codes.SCT, kind_of(name)[1]),
        measurements=measurements,
    )
