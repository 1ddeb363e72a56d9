"""Which mask outlines the lesion of which scan: by what they are called."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from medmeta.clinical.bundle import ENDINGS, BundleError
from medmeta.volumes.loading import READERS

# ".nii.gz" is no ".nii", so their order does not matter; a pair of scans in any format can be crossed
_SUFFIXES = (*READERS, ".zip", ".dcm", ".dicom", ".ima")


def stem_of(path: Path) -> str:
    """Name without the suffix of its format; ``""`` where nothing is left.

    Example:
        >>> stem_of(Path("a/case_1.nii.gz"))
        'case_1'
    """
    return next((path.name[: -len(s)] for s in _SUFFIXES if path.name.lower().endswith(s)), path.name)


def files_of(given: str | os.PathLike[str] | Iterable[Any]) -> tuple[Path, ...]:
    """The files of a scan: in a sequence, or one a channel as in the table of a cohort, ``t1.nii;t2.nii``; a
    file whose own name has a semicolon is taken as it is."""
    if not isinstance(given, (str, os.PathLike)):
        return tuple(Path(p) for p in given)
    several = [part.strip() for part in os.fspath(given).split(";") if part.strip()]
    return (Path(given),) if len(several) < 2 or Path(given).exists() else tuple(map(Path, several))


def case_of(path: Path) -> str:
    """Which case a scan or a mask is of: its name without suffix and without what calls it a mask.

    Example:
        >>> case_of(Path("scans/case_1.nii.gz")) == case_of(Path("masks/case_1_seg.nii.gz"))
        True
    """
    stem = stem_of(path)
    return next((stem[: -len(e)] for e in ENDINGS if stem.endswith(e)), stem)


def masks_of(scans: Sequence[Any], folder: str | os.PathLike[str]) -> list[str]:
    """The mask of each scan, found in a folder by name: ``case_1.nii.gz`` has ``case_1_seg.nii.gz``.

    Sorting both would not do: ``case_10.nii.gz`` comes after ``case_1.nii.gz``, and ``case_10_seg.nii.gz``
    before ``case_1_seg.nii.gz``.

    Args:
        scans: files or folders, or files of one channel each: a list, or ``"t1.nii;t2.nii"``.
        folder: of the masks, each called as its scan, with one of
            :data:`medmeta.clinical.bundle.ENDINGS` or none; a scan of several files is called as the first of
            them, or else by what all of them are: ``case_1_t1.nii`` and ``case_1_t2.nii`` by ``case_1``.

    Returns:
        One path a scan, in their order; none at all where the folder has none or is not there.

    Raises:
        BundleError: where a scan has no mask of its name, or several.
    """
    masks = sorted(Path(folder).glob("[!.]*"))
    if not masks:
        return []
    named: dict[str, list[Path]] = {}
    for mask in masks:
        named.setdefault(case_of(mask), []).append(mask)
    found = [next((named[name] for name in _names(files_of(scan)) if name in named), []) for scan in scans]
    wrong = [len(own) for own in found if len(own) != 1]
    if wrong:
        raise BundleError(
            "one mask for each scan, called as the scan is",
            found=f"{wrong.count(0)} of {len(found)} scans without, {sum(n > 1 for n in wrong)} with several",
            cure=f"Name that of case.nii.gz case{ENDINGS[0]}.nii.gz, or give --masklist in the scans' order.",
        )
    return [str(own) for (own,) in found]


def _names(scan: Sequence[Path]) -> Iterator[str]:
    """What the mask of a scan may be called, the likeliest first."""
    yield case_of(scan[0])
    yield from (name for _, name in _shared(scan))


def refuse_crossed(scans: Sequence[Sequence[Path]], masks: Sequence[Path]) -> None:
    """Refuse masks of which one is plainly that of another scan: by its name, or by the folder it is in.

    Names that say nothing are taken in the order that they are given in.

    Args:
        scans: paths of each, one a channel; none where it lies in an archive.
        masks: as many, in their order.

    Raises:
        BundleError: where they cross.

    Example:
        >>> refuse_crossed([[Path("a.nii")], [Path("b.nii")]], [Path("b_seg.nii"), Path("a_seg.nii")])
        Traceback (most recent call last):
            ...
        medmeta.clinical.bundle.BundleError: wanted masks in the order of the scans, found 2 of 2 called as \
another scan. Give them in the same order, each called as its scan.
    """
    called = [{*_calls(paths[0]), *_shared(paths)} if paths else set() for paths in scans]
    sides = [Counter(name for names in side for name in names) for side in (called, map(_calls, masks))]
    # a folder that several masks lie in, say one annotator's, tells of none of them
    telling = {name for name, times in sides[0].items() if times == 1 and sides[1][name] < 2}
    hints = [telling & set(_calls(mask)) for mask in masks]
    crossed = sum(bool(hint) and not hint & own for hint, own in zip(hints, called, strict=True))
    if crossed:
        raise BundleError(
            "masks in the order of the scans",
            found=f"{crossed} of {len(masks)} called as another scan",
            cure="Give them in the same order, each called as its scan.",
        )


def _calls(path: Path) -> Iterator[tuple[str, str]]:
    """What a path may tell a case by: its name, and the folder it is in."""
    yield "name", case_of(path)
    yield "folder", path.absolute().parent.name


def _shared(paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """What the files of several channels are called by in common: ``case_1`` of ``case_1_t1`` and ``_t2``."""
    words = zip(*(re.findall(r"[-_.]*[^-_.]+", stem_of(path)) for path in paths), strict=False)
    name = "".join(one[0] for one in itertools.takewhile(lambda each: len(set(each)) == 1, words))
    if len(paths) > 1 and name:
        yield "name", name
