"""The planes of a DICOM file: one of a classic image, one a frame of an enhanced one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pydicom.dataset import Dataset

from medmeta.volumes.tags import first, items, number, numbers, text, texts, whole

# functional groups: sequence, and what is taken from it
_POSITION, _ORIENTATION, _MEASURES = 0x00209113, 0x00209116, 0x00289110
# an ultrasound volume says the same in a frame of reference of its own (PS3.3, C.8.24)
_VOLUME_POSITION, _VOLUME_ORIENTATION = 0x0020930E, 0x0020930F
_TRANSFORM, _CONTENT, _ECHO, _DIFFUSION = 0x00289145, 0x00209111, 0x00189114, 0x00189117
_TYPES = (0x00189226, 0x00189329, 0x00189751, 0x00209529)


@dataclass(frozen=True)
class Slice:
    """One plane of an image.

    Args:
        frame: index within the file's frames.
        position: centre of the first voxel (mm, LPS), ``()`` where absent.
        orientation: direction along a row and along a column (LPS), ``()`` where absent.
        spacing: distance between rows and between columns (mm), ``()`` where absent.
        thickness: SpacingBetweenSlices, else SliceThickness (mm), or None.
        slope, intercept: of the rescaling to real values.
        stack: StackID of an enhanced file.
        echo, time, direction, component: what tells two images of one position apart.
        moment: times that may well differ between slices of one volume, and tell doubled ones apart.
    """

    frame: int = 0
    position: tuple[float, ...] = ()
    orientation: tuple[float, ...] = ()
    spacing: tuple[float, ...] = ()
    thickness: float | None = None
    slope: float = 1.0
    intercept: float = 0.0
    stack: str = ""
    echo: tuple = ()
    time: tuple = ()
    direction: tuple = ()
    component: tuple = ()
    moment: tuple = ()


def classic_slices(ds: Dataset) -> tuple[Slice, ...]:
    """The one slice of a file of a frame."""
    one = Slice(
        position=numbers(ds, 0x00200032),
        orientation=numbers(ds, 0x00200037),
        spacing=numbers(ds, 0x00280030),
        thickness=number(ds, 0x00180088) or number(ds, 0x00180050),
        slope=_or(number(ds, 0x00281053), 1.0),
        intercept=_or(number(ds, 0x00281052), 0.0),
        echo=(_rounded(number(ds, 0x00180081)), text(ds, 0x00180086)),
        time=(text(ds, 0x00200100),),
        direction=(number(ds, 0x00189087), *numbers(ds, 0x00189089), text(ds, 0x0019100C)),
        component=(texts(ds, 0x00080008)[2:4], text(ds, 0x00089208)),
        moment=tuple(text(ds, t) for t in (0x00181060, 0x00200012, 0x00541300, 0x00080032, 0x00080033)),
    )
    return (one,)


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _rounded(value: float | None) -> float | None:
    """An echo time to 1 %: repeated slices of one echo differ in the last digits on some scanners."""
    return None if value is None else float(f"{value:.2g}")


def frame_slices(ds: Dataset) -> tuple[Slice, ...]:
    """One slice a frame; a group that is not in the frame is taken from the shared ones."""
    shared = _groups(first(ds, 0x52009229), Slice(component=(texts(ds, 0x00080008)[2:4], "")))
    frames = items(ds, 0x52009230)
    return tuple(replace(_groups(frame, shared), frame=index) for index, frame in enumerate(frames))


def _groups(ds: Dataset | None, known: Slice) -> Slice:
    if ds is None:
        return known
    found: dict[str, object] = {}
    if (group := first(ds, _POSITION)) is not None:
        found["position"] = numbers(group, 0x00200032)
    if (group := first(ds, _ORIENTATION)) is not None:
        found["orientation"] = numbers(group, 0x00200037)
    found.update(_in_volume(ds))
    if (group := first(ds, _MEASURES)) is not None:
        found["spacing"] = numbers(group, 0x00280030)
        found["thickness"] = number(group, 0x00180088) or number(group, 0x00180050)
    if (group := first(ds, _TRANSFORM)) is not None:
        found["slope"] = _or(number(group, 0x00281053), 1.0)
        found["intercept"] = _or(number(group, 0x00281052), 0.0)
    found.update(_told_apart(ds))
    return replace(known, **found)  # type: ignore[arg-type]


def _in_volume(ds: Dataset) -> dict[str, object]:
    """Position and orientation of a frame of an ultrasound volume."""
    found: dict[str, object] = {}
    if (group := first(ds, _VOLUME_POSITION)) is not None:
        found["position"] = numbers(group, 0x00209301)
    if (group := first(ds, _VOLUME_ORIENTATION)) is not None:
        found["orientation"] = numbers(group, 0x00209302)
    return found


def _told_apart(ds: Dataset) -> dict[str, object]:
    found: dict[str, object] = {}
    if (group := first(ds, _CONTENT)) is not None:
        found["time"] = (whole(group, 0x00209128),)
        found["stack"] = text(group, 0x00209056)
        found["moment"] = (text(group, 0x00189074), text(group, 0x00189151), whole(group, 0x00209156))
    if (group := first(ds, _ECHO)) is not None:
        found["echo"] = (_rounded(number(group, 0x00189082)), "")
    if (group := first(ds, _DIFFUSION)) is not None:
        gradient = first(group, 0x00189076)
        way = numbers(gradient, 0x00189089) if gradient is not None else ()
        found["direction"] = (number(group, 0x00189087), *way, text(group, 0x00189075))
    for tag in _TYPES:
        if (group := first(ds, tag)) is not None:
            found["component"] = (texts(group, 0x00089007)[2:4], text(group, 0x00089208))
    return found
