"""The refusals of the reading room: one family, each with a code that never changes."""

from __future__ import annotations

from pathlib import Path

from medmeta.errors import MedmetaError

# code: what was wanted, what to do
CODES: dict[str, tuple[str, str]] = {
    # the file itself
    "not-found": (
        "a file or folder that is there",
        "Check the path; it may have been moved while being read.",
    ),
    "not-a-volume": (
        "an image file (NIfTI, DICOM, NRRD, MetaImage, PNG, JPEG, npz), a folder or zip of DICOM",
        "Name another file or convert it.",
    ),
    "unreadable": ("a file that can be read", "Copy the file again from its source."),
    "truncated-file": ("a whole file", "Copy the file again from its source."),
    "damaged-file": ("a file as it was written", "Copy the file again from its source."),
    "too-large": ("a volume that fits into memory", "Crop the volume, or raise the limit with max_voxels=."),
    "unsafe-zip": (
        "a zip that stays in its folder and is no bomb",
        "Unpack it yourself after looking into it.",
    ),
    "several-volumes": ("one volume", "Choose one with series=, modality= or description=."),
    "no-such-series": (
        "a series of that key, modality or description",
        "Choose one that medmeta inspect lists.",
    ),
    # DICOM: what is in the series
    "not-an-image": ("a DICOM image of slices", "Name the image series."),
    "mixed-series": ("one image in one series", "Split the series at its source."),
    "colour": ("a grey image", "Export the series without colour; colour carries no measured value."),
    "mosaic": ("one slice an image", "Export the series without mosaic (enhanced or unpacked)."),
    "localizer": ("slices of one orientation", "Leave localizers out."),
    "several-echoes": ("one echo", "Split the series by EchoTime and read each."),
    "several-times": ("one time point", "Split the series by time point and read each."),
    "several-directions": ("one diffusion weighting", "Split the series by b-value and direction."),
    "several-components": ("one component", "Split the series into magnitude, phase, real, imaginary."),
    "missing-slice": ("every slice of the series", "Fetch the series from the archive again."),
    "doubled-slice": ("each slice once", "Remove the slices that do not belong to the series."),
    "uneven-spacing": ("evenly spaced slices", "Use a reconstruction with even spacing."),
    "shifted-slice": ("slices that lie in a stack", "Use another reconstruction of the scan."),
    "tilted-gantry": ("slices stacked along their normal", "Resample the scan to a straight grid first."),
    "missing-position": ("ImagePositionPatient in every slice", "Export the original images."),
    "missing-orientation": ("a valid ImageOrientationPatient in every slice", "Export the original images."),
    "missing-spacing": ("a valid PixelSpacing in every slice", "Export the original images."),
    "missing-pixels": ("pixel data in every image", "Fetch the series from the archive again."),
    "truncated-pixels": ("all the pixel data", "Fetch the series from the archive again."),
    "damaged-pixels": ("pixel data that can be decoded", "Fetch the series from the archive again."),
    "missing-decoder": ("a decoder of the transfer syntax", "Install the package named."),
    "unsupported-pixels": ("whole-number pixels of at most 32 bits", "Convert the series at its source."),
    "bad-rescale": ("a finite rescale slope and intercept", "Fetch the series from the archive again."),
    "bad-header": ("a DICOM header that makes sense", "Fetch the file from the archive again."),
    # NIfTI, NRRD, MetaImage, pictures
    "bad-affine": ("an invertible affine of finite numbers", "Repair the header with the original's affine."),
    "sheared": ("axes at right angles", "Resample the volume to a straight grid first."),
    "flipped-forms": ("sform and qform of one handedness", "Find out which is right and remove the other."),
    "several-times-file": (
        "one volume in the file",
        "Split the 4D file, or say channels= where they are the channels of one image.",
    ),
    "other-channels": ("the number of channels asked for", "Name the channels that the file holds."),
    "not-scalar": ("one real number a voxel", "Convert the file to one channel."),
    "not-finite": ("finite voxels", "Repair the volume, or leave it out."),
    "bad-slope": ("a finite scl_slope and scl_inter", "Repair the header."),
    # masks
    "other-grid": (
        "a mask on the image's grid",
        "Give the mask of this image, or resample with resample=True.",
    ),
    "other-frame": ("a mask in the image's frame of reference", "Give the mask of this image."),
    "not-whole": ("whole numbers from 0 up in a mask", "Give the mask, not probabilities or the image."),
    "image-as-mask": ("a mask with regions of equal value", "Give the mask, not the image."),
    "grey-mask": ("label values", "Name the value with label=255 if it is the label."),
    "empty-mask": ("a mask with something in it", "Leave the mask out where the patient has no target."),
    "missing-label": ("the label asked for", "Name a label that the mask holds."),
    "overlapping-segments": ("segments that do not overlap", "Name one segment with label=."),
    "bad-contour": ("closed planar contours on the slices", "Export the contours drawn on this image."),
    "several-masks": ("one mask", "Name the file."),
}


def own_name(path: str | Path) -> str:
    """What may be said of where something is: a file's own name, nothing of a folder or an archive.

    Hospitals call the folder or the zip of a study by the patient's name.

    Example:
        >>> own_name("DOE_JANE/000.dcm"), own_name("DOE_JANE"), own_name("DOE_JANE.zip")
        ('000.dcm', '', '')
    """
    path = Path(path)
    if path.suffix.lower() == ".zip":
        return ""
    return path.name if path.is_file() or (path.suffix and not path.is_dir()) else ""


class VolumeError(MedmetaError):
    """A file that cannot be read right, or was read right and cannot be used.

    Args:
        code: one of ``CODES``; stable, for programs.
        found: what was there instead; never a patient's name, id or date.
        where: the file or folder meant; only a file's own name is kept (see ``own_name``).
        cure: what to do, where more can be said than the code's own advice.

    Example:
        >>> error = VolumeError("missing-slice", found="1 gap", where="scan/ct.dcm")
        >>> error.code
        'missing-slice'
        >>> print(error)
        wanted every slice of the series, found 1 gap in 'ct.dcm'. Fetch the series from the archive again.
    """

    def __init__(
        self, code: str, *, found: str, where: str | Path | None = None, cure: str | None = None
    ) -> None:
        wanted, advice = CODES[code]
        self.code = code
        self._parts = (code, found, where, cure)
        name = own_name(where) if where is not None else ""
        place = f" in {name!r}" if name else ""
        super().__init__(wanted, found=found + place, cure=cure or advice)

    def __reduce__(self) -> tuple:
        return _again, self._parts


def _again(code: str, found: str, where: str | Path | None, cure: str | None) -> VolumeError:
    return VolumeError(code, found=found, where=where, cure=cure)
