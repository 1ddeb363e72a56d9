"""Make the synthetic cohort of this folder: patients with made-up tumours, as NIfTI and as DICOM.

An honest phantom, not a realistic body: a rounded body with organs, cysts and vessels that look like
tumours by brightness, and one tumour whose *type* shows in its texture, rim, core, shape and site. Every
patient has a scanner of its own (noise, gain, bias field, blur, spacing, orientation). The same seed gives
the same bytes.

    python sample_data/make.py --patients 200 --seed 7 --out DIR
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

FIELD = np.array([96.0, 96.0, 90.0])  # mm, the part of the body that every scanner sees
GREY = 5  # stored values are rounded to this, below every scanner's noise, so that files stay small


@dataclass(frozen=True)
class TumourType:
    """What makes a tumour type recognisable; the grey levels are relative to the tissue around it.

    Args:
        name: made up.
        contrast: mean grey level over the tissue's.
        texture: ``smooth``, ``coarse``, ``fine``, ``striped`` or ``speckled``.
        rim: grey level of the outermost shell over the inside, 0 for none.
        rim_mm: thickness of that shell.
        core: grey level of a necrotic core over the inside, 0 for none.
        shape: ``round``, ``lobed``, ``long``, ``spiky`` or ``flat``.
        site: ``deep``, ``edge``, ``high`` or ``any``.
        radius: mean radius in mm.
    """

    name: str
    contrast: float
    texture: str
    rim: float
    rim_mm: float
    core: float
    shape: str
    site: str
    radius: float


# drawn once so that every feature value occurs several times and no type stands alone
TYPES = (
    TumourType("annular", 60, "smooth", 160, 2.5, 0, "round", "any", 13),
    TumourType("brindled", 90, "striped", 0, 0, 0, "lobed", "deep", 14),
    TumourType("crested", 110, "fine", 0, 0, 0, "spiky", "edge", 12),
    TumourType("dappled", 70, "speckled", 0, 0, 0, "round", "any", 13),
    TumourType("fluted", -90, "striped", 90, 2.0, 0, "long", "deep", 13),
    TumourType("gnarled", 80, "coarse", -120, 2.5, 0, "spiky", "any", 14),
    TumourType("hollow", 110, "fine", 0, 0, -190, "round", "deep", 14),
    TumourType("lenticular", 90, "coarse", 0, 0, 0, "flat", "edge", 14),
    TumourType("mottled", -80, "coarse", 0, 0, 0, "lobed", "high", 14),
    TumourType("nodose", 120, "smooth", -110, 2.5, 0, "lobed", "any", 13),
    TumourType("pebbled", -70, "speckled", 100, 2.0, 0, "round", "edge", 13),
    TumourType("quilted", 60, "striped", -100, 2.5, 0, "round", "high", 13),
    TumourType("rimose", 70, "coarse", 130, 2.0, -120, "lobed", "any", 14),
    TumourType("sericate", 100, "speckled", 0, 0, -150, "long", "any", 14),
)


def noise(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth random field of zero mean and unit deviation; ``sigma`` in millimetres of the body grid."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
    return field / field.std()


def grid() -> np.ndarray:
    """``(3, x, y, z)`` RAS millimetres of the body grid, 1 mm voxels, 0 in the middle."""
    axes = [np.arange(round(size)) - (size - 1) / 2 for size in FIELD]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def rotation(rng: np.random.Generator) -> np.ndarray:
    """A random rotation of space."""
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def body(mm: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The body without a tumour, and how far (mm) each voxel lies below its surface."""
    radii = np.array([43, 40, 60]) * rng.uniform(0.93, 1.05, 3)
    ripple = 2.5 * noise(mm.shape[1:], 12, rng)
    depth = (1 - np.sqrt(sum((mm[i] / radii[i]) ** 2 for i in range(3)))) * radii[:2].mean() + ripple
    image = 300 + 25 * noise(mm.shape[1:], 7, rng) + 14 * noise(mm.shape[1:], 1.6, rng)
    for grey in rng.permutation([-90, -40, 60, 110])[: rng.integers(2, 5)]:  # organs
        centre = rng.uniform(-24, 24, 3)
        turned = np.tensordot(rotation(rng), mm - centre[:, None, None, None], 1)
        radius = rng.uniform(10, 20, 3)
        inside = sum((turned[i] / radius[i]) ** 2 for i in range(3)) + 0.25 * noise(mm.shape[1:], 6, rng) < 1
        image = np.where(inside, image + grey + rng.uniform(8, 22) * noise(mm.shape[1:], 2.2, rng), image)
    image = np.where(
        (depth < 5) & (depth >= 0), 430 + 15 * noise(mm.shape[1:], 1.5, rng), image
    )  # fat and skin
    return np.where(depth >= 0, image, 12.0), depth


def cysts(image: np.ndarray, mm: np.ndarray, depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Smooth balls, as bright or as dark as tumours; some have a thin wall."""
    for _ in range(rng.integers(3, 6)):
        centre = place(mm, depth, rng, at_least=7)
        distance = np.sqrt(((mm - centre[:, None, None, None]) ** 2).sum(0)) + 1.2 * noise(
            mm.shape[1:], 5, rng
        )
        radius, grey = rng.uniform(4, 9), rng.choice([-170, -110, 90, 150, 210])
        image = np.where(distance < radius, 300 + grey, image)
        if rng.random() < 0.4:
            image = np.where(abs(distance - radius) < 0.8, 300 + grey + rng.choice([-110, 110]), image)
    return image


def vessels(image: np.ndarray, mm: np.ndarray, depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bent bright tubes, with a knot now and then."""
    for _ in range(rng.integers(3, 6)):
        start, way = place(mm, depth, rng, at_least=5), rng.standard_normal(3)
        bend, along = 0.02 * rng.standard_normal(3), np.linspace(-55, 55, 160)
        way = way / np.linalg.norm(way)
        points = start[:, None] + way[:, None] * along + bend[:, None] * along**2
        index = np.round(points + (FIELD[:, None] - 1) / 2).astype(int)
        inside = ((index >= 0) & (index < np.array(mm.shape[1:])[:, None])).all(0)
        if not inside.any():
            continue
        line = np.ones(mm.shape[1:], bool)
        line[tuple(index[:, inside])] = False
        distance = ndimage.distance_transform_edt(line)
        image = np.where((distance < rng.uniform(1.4, 3.2)) & (depth > 3), 300 + rng.uniform(110, 240), image)
    return image


def place(
    mm: np.ndarray,
    depth: np.ndarray,
    rng: np.random.Generator,
    *,
    at_least: float,
    at_most: float = 99,
    where: np.ndarray | None = None,
) -> np.ndarray:
    """A point (RAS mm) so deep below the surface, and well inside every scanner's field."""
    fits = (depth > at_least) & (depth < at_most) & (abs(mm[2]) < 30)
    if where is not None and (fits & where).any():
        fits = fits & where
    return mm.reshape(3, -1)[:, rng.choice(np.flatnonzero(fits))]


TEXTURES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "smooth": lambda turned, rng: 6 * noise(turned.shape[1:], 3, rng),
    "coarse": lambda turned, rng: 55 * noise(turned.shape[1:], 2.4, rng),
    "fine": lambda turned, rng: 55 * noise(turned.shape[1:], 1.1, rng),
    "striped": lambda turned, rng: (
        70 * np.sin(2 * np.pi * (turned[0] + 0.8 * noise(turned.shape[1:], 4, rng)) / rng.uniform(6.0, 7.5))
    ),
    "speckled": lambda turned, rng: 150.0 * (noise(turned.shape[1:], 1.5, rng) > 1.25),
}


def tumour(
    kind: TumourType, mm: np.ndarray, depth: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Where the tumour is, and what it makes of the image."""
    radius = kind.radius * rng.uniform(0.75, 1.25)
    limits = {"deep": (radius + 8, 99), "edge": (radius * 0.55 + 2, radius + 5)}.get(
        kind.site, (radius * 0.8, 99)
    )
    where = mm[2] > 5 if kind.site == "high" else None
    centre = place(mm, depth, rng, at_least=limits[0], at_most=limits[1], where=where)
    turned = np.tensordot(rotation(rng), mm - centre[:, None, None, None], 1)
    stretch = {"long": (1.7, 0.8, 0.8), "flat": (1.35, 1.35, 0.55)}.get(kind.shape, (1.0, 1.0, 1.0))
    stretch_by = np.array(stretch) * rng.uniform(0.9, 1.1, 3)
    distance = np.sqrt(sum((turned[i] / stretch_by[i]) ** 2 for i in range(3)))
    size, scale = {"lobed": (2.6, 5.0), "spiky": (2.6, 2.4)}.get(kind.shape, (0.9, 5.0))
    distance = distance + size * noise(mm.shape[1:], scale, rng)
    inside = ndimage.binary_opening((distance < radius) & (depth > 2))
    parts, _ = ndimage.label(inside)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    inside = parts == sizes.argmax()
    below = ndimage.distance_transform_edt(inside)
    strength = rng.uniform(0.85, 1.2)

    def change(image: np.ndarray) -> np.ndarray:
        grey = 300 + strength * (kind.contrast + TEXTURES[kind.texture](turned, rng))
        if kind.rim:
            grey = grey + strength * kind.rim * (below <= kind.rim_mm)
        if kind.core:
            grey = grey + strength * kind.core * (below > 0.5 * below.max())
        return np.where(inside, grey, image)

    return inside, change


def orientation(rng: np.random.Generator, *, oblique: bool) -> np.ndarray:
    """Columns: the RAS directions of the array's axes; the last is across the slices."""
    order = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
    plane = rng.choice(["axial", "axial", "coronal", "sagittal"])
    turn = np.eye(3)[:, order[plane]] * rng.choice([-1, 1], 3)
    if oblique:
        a, b = np.deg2rad(rng.uniform(-12, 12, 2))
        tilt = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
        turn = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]]) @ tilt @ turn
    return turn


def scan(
    image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, *, series: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What this patient's scanner stores: ``(i, j, k)`` int16 voxels, uint8 mask, RAS affine (mm).

    Args:
        series: for a DICOM series: the slices follow rows x columns, and are thick, so that files stay few.
    """
    turn = orientation(rng, oblique=rng.random() < 0.2)
    if series and np.linalg.det(turn) < 0:
        turn[:, 2] *= -1
    extent = abs(turn.T) @ FIELD
    across = rng.uniform(3.0, 4.0) if series else rng.uniform(2.4, 3.6)
    in_plane = rng.uniform(1.8, 2.4)
    spacing = np.array([in_plane, in_plane, across])
    shape = np.ceil(extent / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((shape - 1) / 2)
    shift = rng.uniform(-60, 60, 3)  # where the scanner's origin lies
    to_body = np.linalg.inv(translation(-(FIELD - 1) / 2)) @ affine
    blurred = ndimage.gaussian_filter(image, 0.42 * spacing.min() * rng.uniform(0.8, 1.3))
    # the trunk goes on beyond the made field: an oblique scan's corners show no cut surface
    seen, truth = (
        ndimage.affine_transform(
            values, to_body[:3, :3], to_body[:3, 3], tuple(shape), order=1, mode="nearest"
        )
        for values in (blurred, mask.astype(float))
    )
    bias = 1 + rng.uniform(0.05, 0.18) * np.clip(noise(tuple(shape), 12, rng), -2, 2)
    level = rng.uniform(8, 22)
    seen = np.hypot(seen * bias + level * rng.standard_normal(shape), level * rng.standard_normal(shape))
    stored = np.clip(np.round(seen * rng.uniform(0.6, 2.2) / GREY) * GREY, 0, 4095).astype(np.int16)
    affine[:3, 3] += shift
    return stored, (truth > 0.5).astype(np.uint8), affine


def translation(by: np.ndarray) -> np.ndarray:
    """The 4x4 matrix that moves by ``by``."""
    matrix = np.eye(4)
    matrix[:3, 3] = by
    return matrix


def patient(
    kind: TumourType | None, rng: np.random.Generator, *, series: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One patient's stored scan, mask and affine; the tumour lies over the cysts and vessels it grew into."""
    mm = grid()
    image, depth = body(mm, rng)
    image = vessels(cysts(image, mm, depth, rng), mm, depth, rng)
    inside = np.zeros(image.shape, bool)
    if kind is not None:
        inside, change = tumour(kind, mm, depth, rng)
        image = change(image)
    return scan(image, inside, rng, series=series)


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write ``.nii.gz`` whose bytes depend on the content only."""
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, 1)
    image.set_sform(image.get_qform(), 1)  # what the quaternion can hold, so that both say the same
    image.header.set_xyzt_units("mm")
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        packed.write(image.to_bytes())


def uid(*parts: object) -> str:
    """A DICOM UID (2.25 form) that depends on its parts only."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:15]
    return f"2.25.{int.from_bytes(digest, 'big')}"


def decimal(number: float) -> str:
    """The number as a DICOM decimal string, which holds at most 16 characters."""
    return f"{number:.10f}"[:16]


def header(case: str, seed: int) -> Dataset:
    """What all slices of a case's MR series say alike."""
    from pydicom.dataset import Dataset

    file = Dataset()
    file.SpecificCharacterSet = "ISO_IR 192"
    file.PatientName, file.PatientID = f"Synthetic^{case}", case
    file.PatientBirthDate, file.PatientSex, file.PatientIdentityRemoved = "", "O", "YES"
    file.DeidentificationMethod = "synthetic, no person was scanned"
    file.StudyInstanceUID, file.SeriesInstanceUID = uid(seed, case, "study"), uid(seed, case, "series")
    file.FrameOfReferenceUID, file.PositionReferenceIndicator = uid(seed, case, "frame"), ""
    file.StudyID, file.SeriesNumber, file.AccessionNumber = "1", 1, ""
    file.StudyDate = file.ContentDate = "20260101"
    file.StudyTime = file.ContentTime = "120000"
    file.ReferringPhysicianName, file.PatientPosition = "", "HFS"
    file.Modality, file.Manufacturer, file.SeriesDescription = "MR", "medmeta", "synthetic phantom"
    file.ImageType, file.BurnedInAnnotation = ["DERIVED", "PRIMARY", "OTHER"], "NO"
    file.ScanningSequence, file.SequenceVariant, file.ScanOptions = "SE", "NONE", ""
    file.MRAcquisitionType, file.EchoTime, file.RepetitionTime = "2D", "80.0", "3000.0"
    file.EchoTrainLength = 1
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.RescaleSlope, file.RescaleIntercept, file.RescaleType = "1", "0", "US"
    return file


def write_dicom(
    folder: Path,
    case: str,
    array: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    kind: TumourType | None,
    seed: int,
) -> None:
    """Write the scan as a classic MR series and a tumour's mask as a DICOM SEG beside it."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    cosines = lps[:3, :3] / spacing
    brightest = int(array.max())
    (folder / "image").mkdir(parents=True)
    slices = []
    for k in range(array.shape[2]):
        file = header(case, seed)
        file.file_meta = FileMetaDataset()
        file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = MRImageStorage
        file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = uid(seed, case, "slice", k)
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file.InstanceNumber = k + 1
        file.ImageOrientationPatient = [decimal(v) for v in cosines[:, :2].T.ravel()]
        file.ImagePositionPatient = [decimal(v) for v in lps[:3, :3] @ (0, 0, k) + lps[:3, 3]]
        file.PixelSpacing = [decimal(spacing[1]), decimal(spacing[0])]
        file.SliceThickness = file.SpacingBetweenSlices = decimal(spacing[2])
        file.Rows, file.Columns = array.shape[1], array.shape[0]
        file.WindowCenter, file.WindowWidth = brightest // 2, brightest
        file.PixelData = np.ascontiguousarray(array[:, :, k].T).astype("<u2").tobytes()
        file.save_as(folder / "image" / f"{k:03d}.dcm", enforce_file_format=True)
        slices.append(file)
    if kind is not None:
        write_seg(folder / "seg.dcm", slices, mask, kind, seed, case)


def write_seg(path: Path, slices: list, mask: np.ndarray, kind: TumourType, seed: int, case: str) -> None:
    """Write a binary segmentation with one segment, named and coded for the tumour type."""
    import highdicom as hd
    from pydicom.sr.coding import Code
    from pydicom.uid import ExplicitVRLittleEndian

    coded = hd.sr.CodedConcept(kind.name, "99MEDMETA", kind.name)
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label=kind.name,
        segmented_property_category=Code("49755003", "SCT", "Morphologically Abnormal Structure"),
        segmented_property_type=coded,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        tracking_id=f"{case}-1",
        tracking_uid=uid(seed, case, "track"),
    )
    seg = hd.seg.Segmentation(
        source_images=slices,
        pixel_array=np.ascontiguousarray(mask.transpose(2, 1, 0)),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        series_instance_uid=uid(seed, case, "seg series"),
        series_number=2,
        sop_instance_uid=uid(seed, case, "seg"),
        instance_number=1,
        manufacturer="medmeta",
        manufacturer_model_name="synthetic phantom",
        software_versions="1",
        device_serial_number="1",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description="synthetic truth",
    )
    fix(seg, uid(seed, case, "dimensions"))
    seg.save_as(path)


def fix(seg: object, dimensions: str) -> None:
    """Replace what the library takes from the clock and from chance: same seed, same file."""
    for element in seg.iterall():
        if element.keyword == "DimensionOrganizationUID":
            element.value = dimensions
        elif element.VR == "DA" and element.value:
            element.value = "20260101"
        elif element.VR == "TM" and element.value:
            element.value = "120000"
        elif element.VR == "DT" and element.value:
            element.value = "20260101120000"


@dataclass(frozen=True)
class Case:
    """One patient to make."""

    key: str
    kind: TumourType | None
    dicom: bool


def plan(types: int, patients: int, seed: int) -> list[Case]:
    """Who is made: each type, and none, in equal parts; the order, and so the key, tells nothing of the type.

    Two patients of every other type, of the last two and of none are DICOM, one of each other type.
    """
    kinds: list[TumourType | None] = [*TYPES[:types], None]
    cases = []
    for number in range(patients):
        nth, group = divmod(number, len(kinds))
        many = group % 2 == 1 or group >= types - 2
        cases.append((kinds[group], nth < (2 if many else 1)))
    order = np.random.default_rng(seed).permutation(len(cases))
    return [Case(f"P{n:04d}", *cases[i]) for n, i in enumerate(order, 1)]


def make(case: Case, folder: Path, seed: int) -> dict[str, str]:
    """Write one patient; give its row of the table."""
    rng = np.random.default_rng([seed, int(case.key[1:])])
    array, mask, affine = patient(case.kind, rng, series=case.dicom)
    tumor = case.kind.name if case.kind else ""
    if case.dicom:
        write_dicom(folder / "dicom" / case.key, case.key, array, mask, affine, case.kind, seed)
        image, truth = f"dicom/{case.key}/image", f"dicom/{case.key}/seg.dcm"
    else:
        image, truth = f"nifti/{case.key}.nii.gz", f"nifti/{case.key}_mask.nii.gz"
        write_nifti(folder / image, array, affine)
        if case.kind:
            write_nifti(folder / truth, mask, affine)
    return {
        "patient": case.key,
        "image": image,
        "mask": truth if case.kind else "",
        "tumor": tumor,
        "modality": "MR",
    }


MADE = ("nifti", "dicom", "cohort.csv")
HERE = Path(__file__).resolve().parent


def refusal(given: argparse.Namespace) -> str:
    """Why the cohort cannot be made, or an empty text."""
    if given.patients < given.types + 1:
        wanted = given.types + 1
        return f"--patients: wanted at least {wanted}, one of each type and of none, got {given.patients}."
    if given.out.exists() and not given.out.is_dir():
        return f"--out: wanted a folder, got the file {given.out}."
    # the script's own folder holds the script; elsewhere any file may be somebody's
    own = given.out.resolve() == HERE
    there = sorted(p.name for p in given.out.glob("*") if p.name in MADE or not own)
    if there and not given.force:
        return f"--out: {given.out} is not empty (it holds {there[0]}). Give another, or --force to replace."
    return ""


def main(arguments: list[str] | None = None) -> int:
    """Make the cohort in a temporary folder and move it into place; 0, or 2 where it is refused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write (default: this one)")
    parser.add_argument(
        "--patients", type=int, default=210, help="how many, shared equally by the types and none (210)"
    )
    parser.add_argument(
        "--types", type=int, default=len(TYPES), choices=range(1, len(TYPES) + 1), metavar="1-14"
    )
    parser.add_argument("--seed", type=int, default=2026, help="everything random is derived from it (2026)")
    parser.add_argument("--force", action="store_true", help="replace a cohort that is there")
    given = parser.parse_args(arguments)
    if reason := refusal(given):
        sys.stderr.write(f"{reason}\n")
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=given.out) as temporary:
        work = Path(temporary)
        (work / "nifti").mkdir()
        rows = [make(case, work, given.seed) for case in plan(given.types, given.patients, given.seed)]
        with (work / "cohort.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
        for name in MADE:
            if (given.out / name).is_dir():
                shutil.rmtree(given.out / name)
            if (work / name).exists():
                os.replace(work / name, given.out / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
