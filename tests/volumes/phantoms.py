"""DICOM phantoms of known geometry: every voxel's world position is computed here, by hand, from the tags."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, MR, PET = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
AXIAL = (1.0, 0, 0, 0, 1, 0)
OBLIQUE = (0.8, 0.6, 0, 0, 0, -1)
SECRETS = ("SECRET^PATIENT", "ID-998877", "19570131")

Alter = Callable[[Dataset, int], None]


def voxels(
    shape: tuple[int, int, int], *, seed: int = 0, low: int = -1000, high: int = 2000
) -> NDArray[np.int16]:
    """Random stored values ``(slice, row, column)``."""
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int16)


def classic(
    pixels: NDArray[Any],
    *,
    orientation: Sequence[float] = AXIAL,
    origin: Sequence[float] = (-20.0, 30.0, 5.0),
    spacing: Sequence[float] = (0.7, 0.9),
    step: float = 2.5,
    sop_class: str = CT,
    modality: str = "CT",
    slope: float = 1.0,
    intercept: float = 0.0,
    alter: Alter | None = None,
) -> list[Dataset]:
    """One dataset a slice of ``pixels`` ``(slice, row, column)``, spaced evenly along the normal."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    made = []
    for index, plane in enumerate(pixels):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = sop_class
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
        ds.PatientName, ds.PatientID, ds.PatientBirthDate = SECRETS
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.StudyID = "20200102", "101010", "", "1"
        ds.Modality, ds.SeriesDescription, ds.SeriesNumber = modality, "phantom thin", 1
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.InstanceNumber = index + 1
        ds.PatientSex, ds.ReferringPhysicianName = "", ""
        ds.ImageOrientationPatient = [float(v) for v in orientation]
        ds.ImagePositionPatient = [round(float(v), 6) for v in np.array(origin) + index * step * normal]
        ds.PixelSpacing = list(spacing)
        ds.SliceThickness = step
        ds.RescaleSlope, ds.RescaleIntercept = slope, intercept
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.Rows, ds.Columns = plane.shape
        bits = plane.dtype.itemsize * 8
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
        ds.PixelRepresentation = int(plane.dtype.kind == "i")
        ds.PixelData = plane.tobytes() + b"\0" * (plane.nbytes % 2)
        if alter is not None:
            alter(ds, index)
        made.append(ds)
    return made


def affine(
    *,
    orientation: Sequence[float] = AXIAL,
    origin: Sequence[float] = (-20.0, 30.0, 5.0),
    spacing: Sequence[float] = (0.7, 0.9),
    step: float = 2.5,
) -> NDArray[np.float64]:
    """RAS affine that ``classic`` has, from DICOM's equation C.7.6.2.1-1."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = row * spacing[1], column * spacing[0]
    lps[:3, 2], lps[:3, 3] = np.cross(row, column) * step, origin
    return np.diag([-1.0, -1, 1, 1]) @ lps


def save(datasets: Sequence[Dataset], folder: Path, *, names: Sequence[str] | None = None) -> Path:
    """Write datasets to a folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, ds in enumerate(datasets):
        name = names[index] if names else f"{index:03d}.dcm"
        pydicom.dcmwrite(folder / name, ds, enforce_file_format=True)
    return folder


def enhanced(
    pixels: NDArray[Any],
    *,
    orientation: Sequence[float] = AXIAL,
    origin: Sequence[float] = (-20.0, 30.0, 5.0),
    spacing: Sequence[float] = (0.7, 0.9),
    step: float = 2.5,
    slopes: Sequence[float] | None = None,
    order: Sequence[int] | None = None,
    alter: Alter | None = None,
) -> Dataset:
    """One enhanced MR file; ``order`` shuffles the frames, ``alter`` changes a frame's groups."""
    first = classic(pixels, orientation=orientation, origin=origin, spacing=spacing, step=step, modality="MR")
    ds = copy.deepcopy(first[0])
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = ENHANCED_MR
    for name in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness"):
        delattr(ds, name)
    del ds.RescaleSlope, ds.RescaleIntercept
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
    shared = Dataset()
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=list(orientation))]
    shared.PixelMeasuresSequence = [_item(PixelSpacing=list(spacing), SliceThickness=step)]
    ds.SharedFunctionalGroupsSequence = [shared]
    frames, planes = [], []
    for index in order if order is not None else range(len(pixels)):
        frame = Dataset()
        frame.PlanePositionSequence = [_item(ImagePositionPatient=first[index].ImagePositionPatient)]
        slope = slopes[index] if slopes else 1.0
        frame.PixelValueTransformationSequence = [
            _item(RescaleSlope=slope, RescaleIntercept=0.0, RescaleType="US")
        ]
        frame.FrameContentSequence = [
            _item(StackID="1", InStackPositionNumber=index + 1, TemporalPositionIndex=1)
        ]
        if alter is not None:
            alter(frame, index)
        frames.append(frame)
        planes.append(pixels[index])
    ds.PerFrameFunctionalGroupsSequence = frames
    ds.NumberOfFrames = len(frames)
    ds.PixelData = np.stack(planes).tobytes()
    return ds


def _item(**values: Any) -> Dataset:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item
