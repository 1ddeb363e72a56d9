"""Which images a mask file belongs to, by what files and folders are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from medmeta.volumes.layouts.listing import stem

_MASK_FOLDER = re.compile(
    r"^(labels?|masks?|seg(mentation)?s?|annotations?|gt)(tr|ts|va|val|train|test)?$", re.I
)
_MASK_WORD = re.compile(r"(^|[_\-. ])(seg|segmentation|segs|labels?|masks?|rois?|gt)(?=[_\-. ]|$)", re.I)
_CHANNEL = re.compile(r"([_\-.](\d{4}|image|img|ct|mr|pet))$", re.I)

Index = dict[Path, list[tuple[str, Path]]]
"""Images and what they are called, by the folder that masks of theirs may lie in."""


def is_mask(file: Path, root: Path) -> bool:
    """Whether a file's name or folder says that it is a mask.

    Example:
        >>> root = Path("set")
        >>> [is_mask(root / name, root) for name in ("labelsTr/a.nii.gz", "a_seg.nii", "segment.nii")]
        [True, True, False]
    """
    inside = file.relative_to(root).parts[:-1] or (root.name,)
    return bool(_MASK_FOLDER.match(inside[-1])) or _MASK_WORD.search(stem(file)) is not None


def base_of(file: Path) -> str:
    """What an image and its mask have in common."""
    name = stem(file)
    found = _MASK_WORD.search(name)
    if found is not None and found.start() > 0:
        return name[: found.start()]
    return _CHANNEL.sub("", name)


def index_of(images: Sequence[Path]) -> Index:
    """Images by folder, and by the folder above for masks kept in a folder of their own."""
    index: Index = {}
    for image in images:
        index.setdefault(image.parent, []).append((stem(image), image))
        index.setdefault(image.parent.parent / "*", []).append((stem(image), image))
    return index


def owners(mask: Path, index: Index) -> list[Path]:
    """The images that a mask belongs to."""
    base = base_of(mask)
    beside = index.get(mask.parent, [])
    if len(beside) == 1 and _MASK_WORD.fullmatch(base):  # "p1/t1.nii.gz" and "p1/mask.nii.gz"
        return [beside[0][1]]
    apart = index.get(mask.parent.parent / "*", []) if _MASK_FOLDER.match(mask.parent.name) else []
    for candidates in (beside, apart):
        exact = [image for name, image in candidates if base in (name, _CHANNEL.sub("", name))]
        if exact:
            return exact
        longer = [
            image for name, image in candidates if name.startswith((f"{base}_", f"{base}-", f"{base}."))
        ]
        if longer:
            return longer
    return []
