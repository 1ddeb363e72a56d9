"""Medical Segmentation Decathlon and nnU-Net: ``dataset.json``, ``imagesTr``, ``labelsTr``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medmeta.volumes.layouts.labels import counted_names, label_names, per_label
from medmeta.volumes.layouts.listing import Listing, image_files, read_json, section, stem, there
from medmeta.volumes.progress import Track, silent
from medmeta.volumes.record import Volume

_CHANNEL = re.compile(r"_(\d{4})$")


def matches(path: Path) -> bool:
    """Whether the folder holds ``imagesTr``, or a ``dataset.json`` with a training list."""
    if not path.is_dir():
        return False
    return (path / "imagesTr").is_dir() or (path / "dataset.json").is_file()


def read(path: Path, track: Track = silent) -> Listing:
    """Read the training cases, one volume a case and label.

    Names of the labels come from ``dataset.json`` (either way round: ``{"1": "edema"}`` as in the Decathlon,
    ``{"edema": 1}`` as in nnU-Net); without one, value 2 is called ``label_2``.
    """
    listing = Listing()
    about = read_json(path / "dataset.json") if (path / "dataset.json").is_file() else {}
    cases = _listed(path, about, listing) if section(about, "training") else _found(path, about, listing)
    per_label(listing, cases, label_names(about) or counted_names(cases), track=track)
    return listing


def modalities(about: Mapping[str, Any]) -> tuple[str, ...]:
    """The channels' names, in their order; ``()`` where there are none."""
    channels = about.get("channel_names") or about.get("modality") or {}
    if not isinstance(channels, dict):
        return ()
    order = sorted(channels, key=lambda k: (int(k), "") if str(k).isdecimal() else (len(channels), str(k)))
    names = [str(channels[k]).upper() for k in order]
    return tuple("MR" if n.startswith("MR") else n for n in names)


def _listed(path: Path, about: dict[str, Any], listing: Listing) -> list[Volume]:
    cases = []
    by_case: dict[Path, dict[str, list[Path]]] = {}
    for number, entry in enumerate(section(about, "training"), start=1):
        if not isinstance(entry, dict) or "image" not in entry:
            listing.problems.append(f"training entry {number}: no image")
            continue
        image = path / str(entry["image"])
        mask = path / str(entry["label"]) if entry.get("label") else None
        if image.parent not in by_case:
            by_case[image.parent] = _channels(image.parent)
        channels = (image,) if there(image) else tuple(by_case[image.parent].get(stem(image), ()))
        if not channels or mask is None or not there(mask):
            listing.problems.append(f"training entry {number}: the image or the mask does not exist")
            continue
        cases.append(Volume(stem(image), channels, mask, modality=modalities(about)))
    return cases


def _channels(folder: Path) -> dict[str, list[Path]]:
    """The files of each case, listed once for all of them."""
    found: dict[str, list[Path]] = {}
    for file in image_files(folder):
        found.setdefault(_CHANNEL.sub("", stem(file)), []).append(file)
    return found


def _found(path: Path, about: Mapping[str, Any], listing: Listing) -> list[Volume]:
    """Pair ``imagesTr`` with ``labelsTr`` by the case's name, ``_0000`` taken as the channel."""
    images: dict[str, list[Path]] = {}
    masks = {stem(p): p for p in image_files(path / "labelsTr")}
    for file in image_files(path / "imagesTr"):
        name = stem(file)
        case = name if name in masks else _CHANNEL.sub("", name)
        images.setdefault(case, []).append(file)
    most = max((len(files) for files in images.values()), default=0)
    numbers = {
        case: tuple(stem(file).removeprefix(case) or "_0000" for file in files)
        for case, files in images.items()
    }
    usual = Counter(found for found in numbers.values() if len(found) == most).most_common(1)
    cases = []
    for number, (case, files) in enumerate(sorted(images.items()), start=1):
        if case not in masks:
            listing.problems.append(f"case {number} of imagesTr: no mask in labelsTr")
        elif len(files) != most:
            listing.problems.append(f"case {number} of imagesTr: {len(files)} of {most} channels")
        elif numbers[case] != usual[0][0]:  # the second channel would be of another kind
            listing.problems.append(f"case {number} of imagesTr: channels of other numbers than the rest's")
        else:
            cases.append(Volume(case, tuple(files), masks[case], modality=modalities(about)))
    alone = sorted(set(masks) - set(images))
    if alone:
        listing.problems.append(f"{len(alone)} mask(s) in labelsTr without an image")
    return cases
