"""The cases of a run: what each is called, and its scan opened."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from medmeta.clinical.bundle import BundleError
from medmeta.clinical.choose import Passed, Rules, study
from medmeta.clinical.outputs import Scanned
from medmeta.clinical.pacs import Study
from medmeta.clinical.pairing import files_of, stem_of

_LOG = logging.getLogger("medmeta.clinical")
_KEY = ".case-key"
UNSPACED = "voxel size unknown: lengths and volumes are those of voxels of 1 mm"
"""What is said of a picture's measurements."""

Input: TypeAlias = str | os.PathLike[str]
Source: TypeAlias = tuple[Path, ...] | Study


def name_cases(inputs: Iterable[Input | Sequence[Input] | Study], out: Path) -> dict[str, Source]:
    """Name every case: by its file or folder, with as many folders above as it takes to tell them apart.

    A study of an archive is named by a keyed hash of its UID: the key is drawn once and lies in ``out``, so
    that the study has the same name in every run there and none that tells of it elsewhere.

    Raises:
        BundleError: where there is no input, or one is there twice.

    Example:
        >>> list(name_cases(["a/scan.nii.gz", "p1/image", "p2/image"], Path()))
        ['a_scan', 'p1_image', 'p2_image']
        >>> [p.name for p in name_cases(["t1.nii.gz;t2.nii.gz"], Path())["t1"]]
        ['t1.nii.gz', 't2.nii.gz']
    """
    given = [one if isinstance(one, Study) else files_of(one) for one in inputs]
    local = [one for one in given if not isinstance(one, Study)]
    if not given or not all(local):
        raise BundleError("one or more scans", found="none", cure="Name a file or folder for each.")
    _refuse_doubles(given)
    secret = _secret(out) if len(local) < len(given) else b""
    named = iter(_apart([_parts(_whole(case[0])) for case in local]))
    # in the order that they are given in: so are the masks
    return {one.case(secret) if isinstance(one, Study) else next(named): one for one in given}


def _refuse_doubles(cases: Sequence[Source]) -> None:
    """Refuse a scan that is there twice; said by its place, for a path may name the patient."""
    places: dict[Source, list[int]] = {}
    for place, case in enumerate(cases, start=1):
        whole = case if isinstance(case, Study) else tuple(map(_whole, case))
        places.setdefault(whole, []).append(place)
    doubles = [" and ".join(map(str, where)) for where in places.values() if len(where) > 1]
    if doubles:
        more = f"; and {len(doubles) - 3} more that are there again" if len(doubles) > 3 else ""
        raise BundleError(
            f"{len(cases)} different scans",
            found=f"the same one at places {'; at '.join(doubles[:3])}{more}",
            cure="Name each scan once.",
        )


def _apart(parts: Sequence[tuple[str, ...]]) -> list[str]:
    """As few folders above as tell all apart."""
    for depth in range(1, max(map(len, parts), default=0) + 1):
        named = ["_".join(p[-depth:]) for p in parts]
        if len(set(named)) == len(parts):
            return named
    if parts:
        raise BundleError("scans that can be told apart by name", found="two alike", cure="Rename one.")
    return []


def _whole(path: Path) -> Path:
    """From the root on and without ``..``, which would be a name for no case."""
    return Path(os.path.abspath(path))


def _parts(path: Path) -> tuple[str, ...]:
    """Folders and name without its suffix; a dot before a name would hide the results."""
    return tuple(part.lstrip(".") for part in (*path.parts[1:-1], stem_of(path).lstrip(".") or "case"))


def writable(out: Path) -> None:
    """Make the folder of a run's results where it is not there.

    Raises:
        BundleError: where it cannot be made, or is a file.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise BundleError("a folder to write", found="a file", cure="Give another --out.") from error
    except OSError as error:
        raise BundleError(
            "a folder to write", found=error.strerror or type(error).__name__, cure="Give another --out."
        ) from error


def _secret(out: Path) -> bytes:
    """The key of a folder's case names, drawn by whoever comes first; readable for its owner alone."""
    writable(out)
    file = out / _KEY
    temporary = out / f"{_KEY}.{secrets.token_hex(4)}"
    try:
        if not file.exists():
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
                opened.write(secrets.token_bytes(32))
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(temporary, file)
        return file.read_bytes()
    except OSError as error:
        raise BundleError(
            "a folder to write", found=error.strerror or type(error).__name__, cure="Give another --out."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def opened(source: Source, channels: int, rules: Rules) -> Iterator[Scanned]:
    """Read a case's scan; its files are there until the end.

    Args:
        source: paths, one a channel, or a study of an archive.
        channels: of the image.
        rules: which series of a study to take.

    Raises:
        VolumeError: where no series fits or a file cannot be read right.
        CohortError: where several channels are not on one grid.
        PacsError: where the archive refuses.
    """
    with contextlib.ExitStack() as stack:
        paths, passed = (
            stack.enter_context(_fetched(source, rules)) if isinstance(source, Study) else (source, ())
        )
        found = stack.enter_context(study(paths[0], rules))
        if found is None or len(paths) > 1:
            image, warnings = read_channels(paths, channels)
            taken, how = found or (None, None)
            yield Scanned(image, taken, how, warnings)
            return
        series, chosen = found
        for warning in series.warnings:
            _LOG.warning("a series: %s", warning)
        chosen = replace(chosen, passed_over=(*chosen.passed_over, *passed))
        yield Scanned(_image(series, channels), series, chosen, series.warnings)


@contextlib.contextmanager
def _fetched(source: Study, rules: Rules) -> Iterator[tuple[tuple[Path, ...], tuple[Passed, ...]]]:
    with source.fetched(rules) as (folder, passed):
        yield (folder,), passed


def _image(series: Any, channels: int) -> Any:
    from medmeta.volumes import VolumeError
    from medmeta.volumes.dicom_read import read_stack
    from medmeta.volumes.loading import tensor

    if channels != 1:
        raise VolumeError("other-channels", found="one", where=series.header.path)
    return tensor(read_stack(series))


def read_channels(paths: Sequence[Path], channels: int = 1) -> tuple[Any, tuple[str, ...]]:
    """All channels of a scan as one MetaTensor ``(channel, x, y, z)``, and what is to be known of its files.

    Args:
        paths: one a channel, or one NIfTI with the channels on its fourth axis.
        channels: how many there are to be.

    Raises:
        VolumeError: where a file cannot be read right.
        CohortError: where they are not on one grid.
    """
    from medmeta.volumes.loading import read
    from medmeta.volumes.reading import joined

    several = channels > 1 and len(paths) == 1 and paths[0].name.lower().endswith((".nii", ".nii.gz"))
    scans = [read(path, channels=channels if several else 1) for path in paths]
    said = []
    for number, scan in enumerate(scans, start=1):
        of = f"channel {number}: " if len(scans) > 1 else ""
        said += [f"{of}{warning}" for warning in scan.warnings]
    for warning in said:
        _LOG.warning("a scan: %s", warning)
    return joined(scans), (*said, *(() if all(scan.spaced for scan in scans) else (UNSPACED,)))
