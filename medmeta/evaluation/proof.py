"""That a held-out type was held out: what was compared, how much of it, and with what outcome."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medmeta.evaluation.records import EvaluationError
from medmeta.training import Run
from medmeta.volumes import Cohort, Store, Volume, find_leaks
from medmeta.volumes.names import same_types
from medmeta.volumes.progress import Track, silent


@dataclass(frozen=True)
class Side:
    """Who was trained on, or who is judged.

    Args:
        patients, images: how many; None where a run does not say.
        sha256: of their sorted keys, so that two proofs can be compared.
    """

    patients: int
    images: int | None
    sha256: str


@dataclass(frozen=True)
class Looked:
    """Whom altered copies were looked for among: those trained on that the cohorts given hold.

    Args:
        patients: how many of them.
        images: of theirs that were looked at.
        unread: of theirs that could not be read.
    """

    patients: int
    images: int
    unread: int


@dataclass(frozen=True)
class Proof:
    """A held-out type, seen in no stage: the comparisons that were made, all without a finding.

    Args:
        held_out: the types.
        stages: types of each stage of training.
        trained, judged: who.
        names: pairs of type names compared, by case, spelling and number.
        patients: pairs of patient keys compared.
        voxels: pairs of images compared voxel by voxel (by hash); None where the run keeps no hashes.
        near: pairs compared for flipped, resampled or neighbouring copies; None where it was not asked for.
        looked: whom those pairs are with; None likewise.
        rest: whether the run says which types were in its class ``"rest"``, where it had one.
    """

    held_out: tuple[str, ...]
    stages: dict[str, tuple[str, ...]]
    trained: Side
    judged: Side
    names: int
    patients: int
    voxels: int | None
    near: int | None
    looked: Looked | None = None
    rest: bool = True

    def to_json(self) -> dict[str, Any]:
        """For ``results.json``."""
        return {**asdict(self), "text": self.lines()}

    def lines(self) -> list[str]:
        """For the report, a sentence each."""
        held = ", ".join(self.held_out)
        said = [
            f"{stage}: {', '.join(types) or 'none'}; not {held}, nor that in other case or spelling."
            for stage, types in self.stages.items()
        ]
        if not self.rest:
            said.append(
                "Which other types were among the rest that they were told from is not known: the run was "
                "trained before it kept them."
            )
        said.append(
            f"{self.judged.patients} patients were learnt from or judged, none of them one of the "
            f"{self.trained.patients} whom training or validation saw ({self.patients:,} pairs of keys)."
        )
        if self.voxels is None:
            said.append("Images could not be compared: the run was trained before it kept their hashes.")
        else:
            said.append(
                f"None of their {self.judged.images} images has the voxels of one of the "
                f"{self.trained.images} trained on, under any name or in any cohort ({self.voxels:,} pairs)."
            )
        said.append(self._copies())
        said.append(
            f"Keys of those trained on: sha256 {self.trained.sha256[:16]}; judged: {self.judged.sha256[:16]}."
        )
        return said

    def _copies(self) -> str:
        """What was looked for among altered copies, and what was not."""
        if self.near is None or self.looked is None:
            return "Altered copies (flipped, resampled) were not looked for; --trained-on does."
        looked, whole = self.looked, self.trained.patients
        said = (
            f"Nor is any a flipped, resampled or neighbouring copy of one of {looked.images} images of the "
            f"{looked.patients} of those {whole} patients whom the cohorts given hold ({self.near:,} pairs)."
        )
        if looked.patients < whole:
            said += f" Copies of images of the other {whole - looked.patients} were not looked for."
        if looked.unread:
            said += f" {looked.unread} of their images could not be read and were not looked at."
        return said


def check_names(run: Run, tumours: Sequence[str]) -> int:
    """Refuse a type that some stage saw under this or another name; give the number of pairs compared.

    Raises:
        EvaluationError: naming both.
    """
    stages = stages_of(run)
    for tumour in tumours:
        for stage, types in stages.items():
            seen = same_types(tumour, types)
            if seen:
                other = "it" if seen[0] == tumour else f"{seen[0]!r}, the same but for case or spelling,"
                raise EvaluationError(
                    f"a run that has not seen {tumour!r}",
                    found=f"{other} among the types of its {stage}",
                    cure=f"Train with --hold-out {seen[0]}; where they are two types, give one another name.",
                )
    return len(tumours) * sum(len(types) for types in stages.values())


def stages_of(run: Run) -> dict[str, tuple[str, ...]]:
    """The types of each stage of a run's training."""
    made = {"training": run.drawn, "validation and tuning": tuple(run.config.get("validated_on", ()))}
    if run.config["recipe"].get("warm"):
        made = {"supervised pre-training": run.drawn, **made}
    return made


def prove(
    run: Run,
    tumours: Sequence[str],
    judged: Sequence[Volume],
    store: Store,
    *,
    trained_on: Sequence[Cohort] = (),
    track: Track = silent,
) -> Proof:
    """Compare who is judged with who was trained on, and refuse whatever is in both.

    Args:
        run: what was trained.
        tumours: the held-out types.
        judged: volumes that are learnt from as new, or judged.
        store: with the run's salt.
        trained_on: the cohorts of training, to look for altered copies in; may be left out.
        track: shows progress.

    Raises:
        EvaluationError: for a type, patient or image in both, one image under two patients, or where
            ``trained_on`` holds none of those trained on.
    """
    names = check_names(run, tumours)
    patients = {store.patient(v) for v in judged}
    seen = set(run.config["seen"])
    if patients & seen:
        raise EvaluationError(
            "patients whom training has not seen",
            found=f"{len(patients & seen)} whom it has",
            cure="Leave them out, or train anew without them.",
        )
    images = _one_an_image(judged)
    keys = {store.voxels(v): v for v in track(images, description="comparing images", total=len(images))}
    _twice(images, keys, store)
    known = run.config.get("seen_voxels")
    _seen_before(set(keys), known or ())
    looked = _altered(run, images, trained_on, store, track) if trained_on else None
    return Proof(
        tuple(tumours),
        stages_of(run),
        Side(len(seen), None if known is None else len(known), _digest(seen)),
        Side(len(patients), len(images), _digest(patients)),
        names,
        len(patients) * len(seen),
        None if known is None else len(known) * len(images),
        None if looked is None else len(images) * looked.images,
        looked,
        rest="drawn" in run.config or run.config["recipe"].get("against") != "rest",
    )


def _one_an_image(volumes: Iterable[Volume]) -> list[Volume]:
    return list({(v.patient, v.image, v.series): v for v in volumes}.values())


def _twice(images: Sequence[Volume], keys: dict[str, Volume], store: Store) -> None:
    owners: dict[str, set[str]] = {key: set() for key in keys}
    for volume in images:
        owners[store.voxels(volume)].add(volume.patient)
    twice = sum(len(names) > 1 for names in owners.values())
    if twice:
        raise EvaluationError(
            "every image under one patient",
            found=f"{twice} image(s) with the same voxels under two or more patients",
            cure="Find them with 'medmeta inspect COHORT --leaks' and correct the patients' keys.",
        )


def _seen_before(keys: set[str], known: Iterable[str]) -> None:
    both = keys & set(known)
    if both:
        raise EvaluationError(
            "images that training has not seen",
            found=f"{len(both)} with the very voxels of ones it was trained on, under another name",
            cure="Find them with 'medmeta inspect COHORT TRAINED-ON --leaks' and leave them out.",
        )


def _altered(
    run: Run, images: Sequence[Volume], trained_on: Sequence[Cohort], store: Store, track: Track
) -> Looked:
    """Look for altered copies between those judged and those trained on; give whom of these it was."""
    seen = set(run.config["seen"])
    old = _one_an_image(v for c in trained_on for v in c.volumes if store.patient(v) in seen)
    if not old:
        raise _none_found(f"none of the {len(seen)} in the {len(trained_on)} given")
    sides = [Cohort(name, tuple(some), Path()) for name, some in (("judged", images), ("trained on", old))]
    report = find_leaks(sides, track=track)
    found = [
        leak for leak in report if leak.kind != "same-patient" and {leak.first[0], leak.second[0]} == {0, 1}
    ]
    if found:
        raise EvaluationError(
            "images that training has not seen",
            found=f"{len(found)} that are, or seem to be, copies of ones it was trained on "
            f"(similarity {max(one.similarity for one in found):.2f})",
            cure="Find them with 'medmeta inspect COHORT TRAINED-ON --leaks' and leave them out.",
        )
    # images that are judged were read for their voxels: what could not be read is of those trained on
    unread = len(report.problems)
    if unread >= len(old):
        raise _none_found(f"{len(old)} image(s) of theirs, none that can be read")
    return Looked(len({v.patient for v in old}), len(old) - unread, unread)


def _none_found(found: str) -> EvaluationError:
    return EvaluationError(
        "patients whom training saw in the cohorts of training",
        found=found,
        cure="Give the cohorts that the run was trained on, or leave --trained-on out.",
    )


def _digest(keys: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()
