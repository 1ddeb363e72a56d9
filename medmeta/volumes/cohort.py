"""A cohort: the volumes of one folder, whatever its layout."""

from __future__ import annotations

import hashlib
import logging
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from medmeta.errors import nearest
from medmeta.volumes.layouts import LAYOUTS, CohortError, Listing, table
from medmeta.volumes.progress import Track, silent
from medmeta.volumes.record import Volume

_LOG = logging.getLogger(__name__)
_SHOWN = 5  # problems logged one by one


@dataclass(frozen=True)
class Cohort:
    """The volumes of one folder; to PyTorch and MONAI, a map-style dataset of them.

    Args:
        name: name of the folder.
        volumes: one an image and target; a multi-label cohort gives one for each patient and label.
        root: the folder.
        problems: what could not be used, one line each, counting cases and naming no file.
        layout: the layout it was read as.
    """

    name: str
    volumes: tuple[Volume, ...]
    root: Path
    problems: tuple[str, ...] = ()
    layout: str = ""

    def __len__(self) -> int:
        return len(self.volumes)

    def __bool__(self) -> bool:
        return True  # a cohort without volumes is still one

    def __getitem__(self, index: int) -> Volume:
        return self.volumes[index]

    @property
    def tumours(self) -> tuple[str, ...]:
        """The tumour types, sorted."""
        return tuple(sorted({v.tumour for v in self.volumes if v.tumour}))

    @property
    def patients(self) -> tuple[str, ...]:
        """The patients' keys, sorted; raw, so never to be written anywhere."""
        return tuple(sorted({v.patient for v in self.volumes}))

    def of(self, *tumours: str) -> tuple[Volume, ...]:
        """The volumes of some tumour types.

        Raises:
            CohortError: where the cohort has no volume of one of them.
        """
        for tumour in tumours:
            if tumour not in self.tumours:
                raise CohortError(
                    f"volumes with {tumour!r}",
                    found="none",
                    cure=nearest(tumour, self.tumours) if self.tumours else "Name a tumour in the cohort.",
                )
        return tuple(v for v in self.volumes if v.tumour in tumours)


def open_cohort(
    path: str | Path, *, layout: str | None = None, patient: str | None = None, track: Track = silent
) -> Cohort:
    r"""List the volumes of a folder in any of the layouts people already have; read no image yet.

    What cannot be used is left out, kept in ``problems`` and logged.

    Args:
        path: a folder, or the table or list file itself.
        layout: one of ``"table"`` (CSV/TSV with patient, image, mask, tumor), ``"nnunet"`` (Decathlon
            and nnU-Net), ``"datalist"`` (MONAI/Auto3DSeg JSON), ``"dicom"`` (a tree of series with SEG or
            RTSTRUCT), ``"folders"`` (a folder a class); None recognises it.
        patient: regular expression whose first group (or whole match) is the patient in what the layout takes
            for one, such as ``r"^(.*)_slice\d+$"`` where a file is a slice.
        track: shows progress, ``track(items, description=, total=)``.

    Raises:
        CohortError: where the folder is missing, in no known layout, or without one usable volume.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "a.nii.gz").touch()
        >>> _ = (folder / "cohort.csv").write_text("patient,image,mask,tumor\np1,a.nii.gz,,glioma\n")
        >>> open_cohort(folder).tumours
        ('glioma',)
    """
    root = Path(path)
    if not root.exists():
        raise CohortError("a cohort folder", found="nothing at the path given", cure="Check the path.")
    name = layout or _recognise(root)
    if name not in LAYOUTS:
        raise CohortError("a known layout", found=repr(name), cure=nearest(name, LAYOUTS))
    listing = LAYOUTS[name].read(root, track)
    if patient is not None:
        _rename(listing, patient)
    if not listing.volumes:
        raise CohortError(
            f"at least one usable volume in the layout {name!r}", found=_none_found(listing), cure=_CURE[name]
        )
    listing.problems += spellings(v.patient for v in listing.volumes)
    listing.problems += _drawn_again(listing.volumes)
    _say(listing.problems)
    folder = root if root.is_dir() else root.parent
    return Cohort(folder.resolve().name, tuple(listing.volumes), folder, tuple(listing.problems), name)


def plain_key(patient: str) -> str:
    """A patient's key without what nobody says: capitals, spaces, dashes, marks that cannot be seen.

    Example:
        >>> plain_key(" PAT_007 ") == plain_key("pat-007"), plain_key("pat-7") == plain_key("pat-007")
        (True, False)
    """
    seen = "".join(c for c in unicodedata.normalize("NFKC", patient) if unicodedata.category(c) != "Cf")
    return re.sub(r"[\s_.-]+", "-", seen.strip()).casefold()


def spellings(patients: Iterable[str]) -> list[str]:
    """Say whether keys differ in nothing that people say: one patient may stand on both sides of a split."""
    found: dict[str, set[str]] = {}
    for patient in set(patients):
        found.setdefault(plain_key(patient), set()).add(patient)
    doubtful = sum(len(keys) for keys in found.values() if len(keys) > 1)
    if not doubtful:
        return []
    return [
        f"{doubtful} patients whose keys differ only in capitals, spaces or dashes: taken for different"
        " ones; write one key a patient if they are not"
    ]


def _drawn_again(volumes: Iterable[Volume]) -> list[str]:
    """Whether one type is outlined in an image several times: by several raters, or lesion by lesion."""
    masks: dict[tuple, set[tuple]] = {}
    for v in volumes:
        if v.mask is not None:
            masks.setdefault((v.image, v.series, v.tumour), set()).add((v.mask, v.label))
    several = len({(image, series) for (image, series, _), own in masks.items() if len(own) > 1})
    if not several:
        return []
    return [
        f"{several} image(s) with several masks of one tumour type: each mask is taken alone, what only the"
        " others outline for background; join the lesions of an image in one mask, or keep one rater's"
    ]


def _say(problems: list[str]) -> None:
    """Log what is left out, so that nobody trains on half a cohort unawares."""
    for problem in problems[:_SHOWN]:
        _LOG.warning("%s", problem)
    if len(problems) > _SHOWN:
        _LOG.warning("and %d more like these, all in the cohort's problems", len(problems) - _SHOWN)


def _rename(listing: Listing, pattern: str) -> None:
    """Take each patient's key from the pattern's match in it."""
    try:
        rule = re.compile(pattern)
    except re.error as error:
        raise CohortError(
            "a regular expression for the patient", found=str(error), cure="Correct the pattern."
        ) from error
    found = [rule.search(v.patient) for v in listing.volumes]
    unmatched = sum(m is None for m in found)
    if unmatched:
        raise CohortError(
            "a patient pattern that fits every volume",
            found=f"{unmatched} of {len(found)} volumes it does not fit",
            cure="Widen the pattern.",
        )
    listing.volumes = [
        replace(v, patient=m.group(1) if m.re.groups and m.group(1) else m.group(0))
        for v, m in zip(listing.volumes, found, strict=True)
        if m is not None
    ]


_CURE = {
    "table": "Fill the columns patient, image, mask, tumor with paths relative to the table.",
    "nnunet": "Put images in imagesTr and masks of the same name in labelsTr.",
    "datalist": 'List {"image": …, "label": …} under "training".',
    "dicom": "Put DICOM series with their SEG or RTSTRUCT below the folder.",
    "folders": "Make one folder a class with the images in it.",
}


def _none_found(listing: Listing) -> str:
    if not listing.problems:
        return "an empty cohort"
    more = f" and {len(listing.problems) - 1} more" if len(listing.problems) > 1 else ""
    return f"none ({listing.problems[0]}{more})"


def _recognise(root: Path) -> str:
    for name, layout in LAYOUTS.items():
        if layout.matches(root):
            return name
    if table.find(root) is not None:
        return "table"  # which says what column it misses
    empty = root.is_dir() and not any(root.iterdir())
    raise CohortError(
        f"a cohort in one of the layouts {', '.join(LAYOUTS)}",
        found="an empty folder" if empty else "none of them",
        cure="Add a cohort.csv with the columns patient,image,mask,tumor.",
    )


def patient_key(patient: str, salt: str) -> str:
    """A key that says nothing of the patient to those who do not have the salt (keyed BLAKE2b, RFC 7693).

    Example:
        >>> patient_key("DOE^JOHN", "s") == patient_key("DOE^JOHN", "s")
        True
        >>> patient_key("DOE^JOHN", "other") == patient_key("DOE^JOHN", "s")
        False
    """
    secret = hashlib.blake2b(salt.encode(), digest_size=32).digest()
    raw = patient.encode(errors="surrogateescape")  # files' names may be in any encoding
    return hashlib.blake2b(raw, digest_size=6, key=secret).hexdigest()
