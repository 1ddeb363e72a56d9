"""Who is who in DICOM: a PatientID belongs to its issuer, whom not every object names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from medmeta.volumes.dicom_header import Header


def settle(headers: Iterable[Header]) -> list[Header]:
    """The same headers; an issuer that is not named is the only one that others name for the PatientID.

    Archives add the issuer to what they send, and a mask drawn elsewhere lacks it: taken for two patients,
    one person could stand on both sides of a split.
    """
    found = list(headers)
    known = _issuers(found)
    return [_settled(header, known) for header in found]


def _settled(header: Header, known: dict[str, set[str]]) -> Header:
    issuers = known.get(_number(header), set())
    if header.issuer or len(issuers) != 1:
        return header
    (issuer,) = issuers
    return replace(header, patient=f"{_number(header)}^{issuer}", issuer=issuer)


def unclear(headers: Sequence[Header]) -> frozenset[str]:
    """Patients without an issuer whose PatientID several issuers gave: any of theirs, or yet another."""
    known = _issuers(headers)
    bare = (header for header in headers if header.patient and not header.issuer)
    return frozenset(header.patient for header in bare if len(known.get(_number(header), ())) > 1)


def _issuers(headers: Iterable[Header]) -> dict[str, set[str]]:
    """The issuers named for each PatientID."""
    known: dict[str, set[str]] = {}
    for header in headers:
        if header.issuer:
            known.setdefault(_number(header), set()).add(header.issuer)
    return known


def _number(header: Header) -> str:
    """The PatientID alone."""
    return header.patient.removesuffix(f"^{header.issuer}")
