"""A study out of a hospital's archive and results back into it, over DICOMweb: QIDO, WADO and STOW."""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from medmeta.clinical.archive import Archive, PacsError, vanished
from medmeta.clinical.choose import Passed, Rules
from medmeta.volumes.keys import series_key

# objects of a study that no image series is
_OBJECTS = frozenset({"SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "DOC", "FID", "AU"})
_INSTANCE, _SERIES = "00080018", "0020000E"
_MODALITY, _DESCRIPTION, _COUNT = "00080060", "0008103E", "00201209"
_TOLD = (_SERIES, _MODALITY, _DESCRIPTION, _COUNT)


@dataclass(frozen=True)
class Study:
    """A study of an archive.

    Args:
        archive: where it lies.
        uid: StudyInstanceUID.

    Raises:
        PacsError: where that is no UID.
    """

    archive: Archive
    uid: str

    def __post_init__(self) -> None:
        if len(self.uid) > 64 or not re.fullmatch(r"[0-9]+(\.[0-9]+)+", self.uid):
            raise PacsError("a StudyInstanceUID", found="something else", cure="Give --study 1.2.3…")

    def case(self, secret: bytes) -> str:
        """Its name among cases: a keyed hash, from which the UID cannot be found without the key.

        Example:
            >>> Study(Archive("http://localhost"), "1.2.3").case(b"key")
            'study-02b3333fb5846d15'
        """
        return "study-" + hashlib.blake2b(self.uid.encode(), digest_size=8, key=secret).hexdigest()

    @contextlib.contextmanager
    def fetched(self, rules: Rules) -> Iterator[tuple[Path, tuple[Passed, ...]]]:
        """The series that may be wanted, in a temporary folder, and those that were not fetched.

        Raises:
            PacsError: where the archive refuses, the study is not there or not one of its series fits, or a
                series does not arrive whole.
        """
        client = self.archive.client()
        wanted, passed = self._look(client, rules)
        with tempfile.TemporaryDirectory(prefix="medmeta-") as name:
            for number, (uid, count) in enumerate(wanted):
                self._fetch(client, uid, count, Path(name) / str(number))
            yield Path(name), tuple(passed)

    def _look(self, client: Any, rules: Rules) -> tuple[list[tuple[str, int]], list[Passed]]:
        """Series to fetch with their number of instances, and the others."""
        fields = ["Modality", "SeriesDescription", "NumberOfSeriesRelatedInstances"]
        with self.archive.asked("a search for series"):
            found = _every(partial(client.search_for_series, self.uid, fields=fields), _SERIES)
            series = [{tag: _value(one, tag) for tag in _TOLD} for one in found]
        if not series:
            raise vanished("none")
        wanted, passed = [], []
        for one in series:
            why = _refusal(one, rules)
            if why:
                passed.append(Passed(series_key(one[_SERIES]), one[_MODALITY], why))
            else:
                wanted.append((one[_SERIES], int(one[_COUNT] or 0)))
        if not wanted:
            there = ", ".join(f"{p.series} ({p.modality})" for p in passed[:8])
            cure = "Name one with --series KEY, --modality or --description."
            raise PacsError(f"a series with {rules}", found=f"the series {there}", cure=cure)
        return wanted, passed

    def _fetch(self, client: Any, uid: str, count: int, folder: Path) -> None:
        """One series, file by file, as it was stored."""
        import pydicom

        folder.mkdir()
        arrived = 0
        with self.archive.asked("a series"):
            for ds in client.iter_series(self.uid, uid, media_types=(("application/dicom", "*"),)):
                if str(ds.SeriesInstanceUID) != uid or str(ds.StudyInstanceUID) != self.uid:
                    raise ValueError("an instance of another series")
                arrived += 1
                pydicom.dcmwrite(folder / f"{arrived:06d}.dcm", ds, enforce_file_format=True)
        if not arrived:
            raise vanished("a series without an instance")
        if count and arrived != count:
            raise PacsError(
                f"{count} instances of a series", found=f"{arrived}", cure="Run it again with --resume."
            )

    def keep(self, files: Sequence[Path]) -> dict[str, int]:
        """Store results that are not there yet, each once; a report after what it refers to.

        UIDs of results follow from the source, the bundle and the content. So what is there already is not
        sent again, and what the archive did not keep of an earlier try is.

        Args:
            files: DICOM files.

        Returns:
            ``new`` and ``there``: how many were stored and how many were there.

        Raises:
            PacsError: where the archive refuses or does not hold them afterwards, or holds another result of
                the same bundle for the same series.
        """
        import pydicom

        client = self.archive.client()
        results = [pydicom.dcmread(file) for file in files]
        missing = [ds for ds in results if not self._holds(client, ds)]
        if missing:
            with self.archive.asked("storing results"):
                answer = client.store_instances(missing, study_instance_uid=self.uid)
                failed = len(answer.get("FailedSOPSequence", ()))
            lost = sum(not self._holds(client, ds) for ds in missing)
            if failed or lost:
                raise PacsError(
                    "an archive that keeps every result",
                    found=f"{max(failed, lost)} of {len(missing)} refused",
                    cure="Ask who runs the archive whether it takes SEG and SR; run it again.",
                )
        return {"new": len(missing), "there": len(results) - len(missing)}

    def _holds(self, client: Any, ds: Any) -> bool:
        """Whether the archive has an instance.

        Raises:
            PacsError: where its series has another one: made by this bundle of this series, and different.
        """
        with self.archive.asked("a search for results"):
            try:
                search = partial(client.search_for_instances, self.uid, str(ds.SeriesInstanceUID))
                found = _every(search, _INSTANCE)
            except Exception as error:
                if getattr(getattr(error, "response", None), "status_code", 0) != 404:
                    raise
                found = []  # some archives say that a series is empty, others that it is not there
            there = {_value(one, _INSTANCE) for one in found}
        if there - {str(ds.SOPInstanceUID)}:
            raise PacsError(
                "no other result of this bundle for this series",
                found="one of other content",
                cure="Keep that one, or have it deleted first; nothing was stored.",
            )
        return bool(there)


def studies(url: str | None, uids: Sequence[str], *, store: bool, timeout: float) -> list[Study]:
    """The studies asked for on a command line.

    Raises:
        PacsError: where an address comes without a study, or a study or ``store`` without an address.
    """
    if url is None and not uids and not store:
        return []
    if url is None or not uids:
        raise PacsError(
            "--dicomweb URL and --study UID together",
            found="no address" if url is None else "no study",
            cure="Give both; --store needs them too.",
        )
    archive = Archive(url, timeout, store)
    return [Study(archive, uid) for uid in uids]


def _every(search: Callable[..., Any], tag: str) -> list[Any]:
    """All results of a search, page by page; some archives ignore the offset and begin again."""
    found: dict[str, Any] = {}
    while True:
        page = search(offset=len(found)) if found else search()
        new = {_value(one, tag): one for one in page if _value(one, tag) not in found}
        if not new:
            return list(found.values())
        found.update(new)


def _value(one: Any, tag: str) -> str:
    """The first value of a tag in DICOM JSON, ``""`` where there is none."""
    values = one.get(tag, {}).get("Value") or [""]
    return str(values[0])


def _refusal(one: dict[str, str], rules: Rules) -> str:
    """Why a series need not be fetched."""
    if rules.key is not None:
        return "" if rules.key in (one[_SERIES], series_key(one[_SERIES])) else "another one was named"
    if one[_MODALITY] in _OBJECTS:
        return "no image"
    return rules.refusal(one[_MODALITY], one[_DESCRIPTION])
