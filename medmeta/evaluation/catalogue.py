"""The volumes of a cohort by the keys that a manifest knows them by."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from medmeta.errors import nearest
from medmeta.evaluation.manifest import FREE, Key, Manifest, check_queries
from medmeta.evaluation.records import EvaluationError
from medmeta.volumes import Volume
from medmeta.volumes.entry import content_hash


class Catalogue:
    """Some volumes by the keys a manifest knows them by; each file is read once.

    Args:
        volumes: of any types.

    Raises:
        VolumeError, CohortError: where a file cannot be read.
    """

    def __init__(self, volumes: Iterable[Volume]) -> None:
        self.volumes = tuple(volumes)

    @cached_property
    def _hashes(self) -> dict[tuple[Any, ...], str]:
        images = dict.fromkeys((v.image, v.series) for v in self.volumes)
        return {key: _image_key(*key) for key in images}

    @cached_property
    def _by_key(self) -> dict[Key, Volume]:
        found: dict[Key, Volume] = {}
        for volume in self.volumes:
            found.setdefault(self.key(volume), volume)
        return found

    @cached_property
    def _owners(self) -> dict[str, set[str]]:
        """The patients of each image, by its key."""
        owners: dict[str, set[str]] = {}
        for volume in self.volumes:
            owners.setdefault(self.key(volume).image, set()).add(volume.patient)
        return owners

    def _refuse_owners(self, keys: Iterable[Key]) -> None:
        """Refuse images that are there under two patients: whose they are, nobody knows.

        A copy is one volume here, so that of its two patients only the first would be looked at.
        """
        twice = {key.image for key in keys if len(self._owners[key.image]) > 1}
        if twice:
            raise EvaluationError(
                "every image under one patient",
                found=f"{len(twice)} image(s) whose very bytes are there under two or more patients",
                cure="Find them with 'medmeta inspect COHORT --leaks' and correct the patients' keys.",
            )

    def key(self, volume: Volume) -> Key:
        """The key of one of the volumes."""
        return Key(self._hashes[volume.image, volume.series], volume.tumour or FREE)

    def keys(self, volumes: Iterable[Volume]) -> tuple[Key, ...]:
        """The keys of some of the volumes; copies of an image under one type count once."""
        return tuple(dict.fromkeys(self.key(v) for v in volumes))

    def __getitem__(self, key: Key) -> Volume:
        """The volume of a key.

        Raises:
            EvaluationError: where its image is there under two patients.
        """
        volume = self._by_key[key]
        self._refuse_owners([key])
        return volume

    def check(self, manifest: Manifest) -> None:
        """Refuse a manifest whose cases are not all there, or are two patients', or one's on both sides.

        Where nobody judged has the type, or, to classify, nobody is without it, it is refused, too.

        Raises:
            EvaluationError: with the numbers.
        """
        missing = sorted(k for k in manifest.cases if k not in self._by_key)
        if missing:
            kinds = sorted({k.kind for k in missing})
            known = {k.kind for k in self._by_key}
            unknown = [k for k in kinds if k not in known]
            cure = nearest(unknown[0], known) if unknown and known else "Give the cohort it was written for."
            raise EvaluationError(
                f"the {len(manifest.cases)} cases of the manifest in the cohort",
                found=f"{len(missing)} missing ({', '.join(kinds)}), first {missing[0].image}",
                cure=f"{cure} An image counts as there when its bytes are the same.",
            )
        self._refuse_owners(manifest.cases)
        for e in manifest.episodes:
            sides = [{self[k].patient for k in side} for side in (e.support, e.query)]
            if sides[0] & sides[1]:
                raise EvaluationError(
                    f"support and query of episode {e.name} of different patients",
                    found=f"{len(sides[0] & sides[1])} patient(s) on both sides in this cohort",
                    cure="Write the manifest anew, or correct the cohort's patient keys.",
                )
        check_queries(manifest)
        if manifest.task == "segmentation":
            self._check_masks(manifest)

    def _check_masks(self, manifest: Manifest) -> None:
        """Refuse cases to outline without an outline: one is learnt from, or judged, after hours maybe."""
        outlined = {k for e in manifest.episodes for k in (*e.support, *e.query) if e.label(k) == 1}
        without = [k for k in sorted(outlined) if self[k].mask is None]
        if without:
            raise EvaluationError(
                f"a mask of each of the {len(outlined)} cases that show {', '.join(manifest.tumours)}",
                found=f"{len(without)} without, first {without[0].image}",
                cure="Add the masks, or write the manifest anew for this cohort.",
            )

    def table(self, manifest: Manifest) -> str:
        """Which file each case is, as CSV: for other programs, to be kept where the data is."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["image", "kind", "path"])
        for key in sorted(manifest.cases):
            rows.writerow([key.image, key.kind, ";".join(str(p) for p in self[key].image)])
        return text.getvalue()


def _image_key(image: tuple[Path, ...], series: str | None) -> str:
    try:
        bytes_of = content_hash(image)
    except OSError as error:
        raise EvaluationError(
            "images that can be read",
            found=f"one that cannot ({type(error).__name__})",
            cure="Open the cohort again; it may have changed since.",
        ) from error
    return hashlib.blake2b(f"{bytes_of} {series or ''}".encode(), digest_size=8).hexdigest()
