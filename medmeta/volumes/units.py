"""What a stored value means: Hounsfield units, standardised uptake, or the scanner's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydicom.dataset import Dataset

from medmeta.volumes.tags import first, items, number, raw, text, texts


@dataclass(frozen=True)
class Unit:
    """The unit after rescaling.

    Args:
        name: ``"HU"``, ``"SUV"``, ``"BQML"``, ``"stored"`` …
        factor: what rescaled values are multiplied by to be in it.
        warning: why a better unit could not be had, or ``""``.
    """

    name: str
    factor: float = 1.0
    warning: str = ""


def unit_of(ds: Dataset, *, kind: str = "") -> Unit:
    """Decide the unit of an image from its header.

    PET in Bq/ml becomes SUV by body weight: value · weight (g) / dose (Bq) left at the time the image is
    decay-corrected to (QIBA FDG-PET/CT profile, SUV calculation from DICOM attributes).

    Args:
        ds: the header.
        kind: RescaleType of an enhanced file, where it stands in the functional groups.

    Example:
        >>> ds = Dataset(); ds.Modality = "CT"; ds.RescaleIntercept = -1024
        >>> unit_of(ds).name
        'HU'
    """
    modality = text(ds, 0x00080060).upper()
    if modality == "CT":
        kind = (kind or text(ds, 0x00281054)).upper()  # RescaleType
        if not _rescaled(ds):
            return Unit("stored", warning="the CT has no RescaleIntercept: its values are not in HU")
        if kind in ("", "HU") or (kind == "US" and text(ds, 0x00080008).upper().startswith("ORIGINAL")):
            return Unit("HU")
        return Unit(kind, warning=f"the CT is not in HU but in {kind!r}")
    if modality == "PT":
        frames = items(ds, 0x52009230)
        return _of_frames(ds, frames) if frames and not text(ds, 0x00541001) else _uptake(ds)
    return Unit("stored")


def _rescaled(ds: Dataset) -> bool:
    """Whether the image says how its stored values become real ones."""
    frames = items(ds, 0x52009230)
    if not frames:
        return raw(ds, 0x00281052) is not None
    return _group(frames[0], first(ds, 0x52009229), 0x00289145) is not None


def _uptake(ds: Dataset) -> Unit:
    stored = text(ds, 0x00541001).upper()
    kind = text(ds, 0x00541006).upper()  # SUVType
    if stored == "GML" and kind in ("", "BW"):
        return Unit("SUV")
    if stored == "CNTS":
        factor = number(ds, 0x70531000)  # Philips: SUV factor
        if factor is not None and math.isfinite(factor) and factor > 0:
            return Unit("SUV", factor)
    if stored != "BQML":
        name = stored or "stored"
        return Unit(name, warning=f"PET in {name!r}, which cannot be turned into SUV")
    missing, factor = _factor(ds)
    if factor is None:
        return _becquerel(missing)
    return Unit("SUV", factor)


def _factor(ds: Dataset) -> tuple[str, float | None]:
    """SUV per Bq/ml, or what is missing for it."""
    weight = number(ds, 0x00101030)
    if weight is None or not 0 < weight < 1000:
        return "no PatientWeight", None
    drug = first(ds, 0x00540016)
    dose = number(drug, 0x00181074) if drug is not None else None
    if drug is None or dose is None or not dose > 0 or not math.isfinite(dose):
        return "no RadionuclideTotalDose", None
    if "DECY" not in [part.upper() for part in texts(ds, 0x00280051)]:
        return "not decay corrected", None
    correction = text(ds, 0x00541102).upper()
    if correction == "ADMIN":
        return "", weight * 1000.0 / dose
    if correction != "START":
        return f"DecayCorrection is {correction!r}", None
    half_life = number(drug, 0x00181075)
    if half_life is None or not 0 < half_life < math.inf:
        return "no RadionuclideHalfLife", None
    waited = _seconds(ds, drug)
    if waited is None:
        return "no usable time of injection or of the scan", None
    return "", weight * 1000.0 / (dose * 2.0 ** (-waited / half_life))


def _of_frames(ds: Dataset, frames: Sequence[Dataset]) -> Unit:
    """PET of enhanced multi-frame files, which tell the unit by a mapping to real values (PS3.3 C.8.22)."""
    code = _mapped(ds, frames)
    if code.lower().replace(" ", "") in ("g/ml{suvbw}", "{suvbw}g/ml"):
        return Unit("SUV")
    if code.lower() != "bq/ml":
        name = code or "stored"
        return Unit(name, warning=f"PET in {name!r}, which cannot be turned into SUV")
    weight, drug = number(ds, 0x00101030), first(ds, 0x00540016)
    if drug is None:
        return _becquerel("no RadiopharmaceuticalInformationSequence")
    dose, life = number(drug, 0x00181074), number(drug, 0x00181075)
    corrected, injected = _stamp(text(ds, 0x00189701)), _stamp(text(drug, 0x00181078))
    if weight is None or not 0 < weight < 1000:
        return _becquerel("no PatientWeight")
    if dose is None or not 0 < dose < math.inf:
        return _becquerel("no RadionuclideTotalDose")
    if text(ds, 0x00189758).upper() != "YES":
        return _becquerel("not decay corrected")
    if life is None or not 0 < life < math.inf:
        return _becquerel("no RadionuclideHalfLife")
    waited = (corrected - injected).total_seconds() if corrected and injected else -1.0
    if not 0 <= waited <= 86400:
        return _becquerel("no usable time of injection or of the decay correction")
    return Unit("SUV", weight * 1000.0 / (dose * 2.0 ** (-waited / life)))


def _becquerel(why: str) -> Unit:
    return Unit("BQML", warning=f"PET stays in Bq/ml: {why}")


def _mapped(ds: Dataset, frames: Sequence[Dataset]) -> str:
    """The unit that all frames are mapped to by the slope and intercept they are rescaled with, or ``""``."""
    shared = first(ds, 0x52009229)
    codes = set()
    for frame in frames:
        mapping, transform = (_group(frame, shared, tag) for tag in (0x00409096, 0x00289145))
        unit = first(mapping, 0x004008EA) if mapping is not None else None
        if mapping is None or transform is None or unit is None:
            return ""
        pairs = ((0x00409225, 0x00281053), (0x00409224, 0x00281052))
        values = [(number(mapping, a), number(transform, b)) for a, b in pairs]
        if any(a is None or b is None or not math.isclose(a, b, rel_tol=1e-6) for a, b in values):
            return ""
        codes.add(text(unit, 0x00080100))
    return codes.pop() if len(codes) == 1 else ""


def _group(frame: Dataset, shared: Dataset | None, tag: int) -> Dataset | None:
    found = first(frame, tag)
    return found if found is not None or shared is None else first(shared, tag)


def _seconds(ds: Dataset, drug: Dataset) -> float | None:
    """From injection to the time the image is corrected to; None where it cannot be told."""
    day = text(ds, 0x00080021) or text(ds, 0x00080022)
    scan = _moment(day, text(ds, 0x00080031))
    acquired = _moment(text(ds, 0x00080022) or day, text(ds, 0x00080032))
    if scan is None or (acquired is not None and scan > acquired):
        # a series made later from the images carries its own time, not the scan's
        scan = _stamp(text(ds, 0x0009100D)) if text(ds, 0x00090010).startswith("GEMS_PETD") else None
    if scan is None:
        return None
    injected = _stamp(text(drug, 0x00181078))
    if injected is None:
        injected = _moment(f"{scan:%Y%m%d}", text(drug, 0x00181072))
        if injected is not None and injected > scan:
            injected -= timedelta(days=1)  # injected before midnight
    if injected is None:
        return None
    waited = (scan - injected).total_seconds()
    return waited if 0 <= waited <= 86400 else None


def _moment(day: str, time: str) -> datetime | None:
    return _stamp(day + time) if len(day) == 8 and len(time) >= 4 else None


def _stamp(value: str) -> datetime | None:
    """A DICOM date and time, without its time zone (both moments carry the same one)."""
    digits = value.split("+")[0].split("-")[0].strip()
    main, _, part = digits.partition(".")
    try:
        moment = datetime.strptime(main[:14].ljust(14, "0"), "%Y%m%d%H%M%S") if len(main) >= 12 else None
        return None if moment is None else moment + timedelta(seconds=float(f"0.{part or 0}"))
    except ValueError:
        return None
