"""A zip of a study, unpacked to a place of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from medmeta.volumes.errors import VolumeError

# more than a large study holds; deflate reaches 1032 at most, images rarely 10
MAX_BYTES, MAX_FILES, MAX_RATIO = 16 << 30, 200_000, 200
# up to here the ratio says nothing: a label map or a SEG with little in it packs a thousandfold
SMALL_BYTES = 1 << 30


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Unpack a zip into a temporary folder, which is removed at the end.

    Raises:
        VolumeError: ``unsafe-zip`` where a name climbs out of the folder, an entry is a link, or the sizes
            are those of a bomb; ``damaged-file`` where a checksum fails.
    """
    with tempfile.TemporaryDirectory(prefix="medmeta-") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                entries = [entry for entry in archive.infolist() if not entry.is_dir()]
                _safe(entries, path)
                _room(sum(entry.file_size for entry in entries), folder, path)
                for entry in entries:
                    _unpack(archive, entry, Path(folder), path)
        except FileNotFoundError:
            raise VolumeError("not-found", found="nothing", where=path) from None
        except (zipfile.BadZipFile, zlib.error, EOFError):
            raise VolumeError("damaged-file", found="a broken zip", where=path) from None
        except (NotImplementedError, RuntimeError):  # zipfile's, of a method it lacks and of a password
            raise VolumeError("unreadable", found="an encrypted or strange zip", where=path) from None
        except OSError as error:
            raise VolumeError("unreadable", found=type(error).__name__, where=path) from None
        yield Path(folder)


def _safe(entries: list[zipfile.ZipInfo], path: Path) -> None:
    for entry in entries:
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        # a colon is one more character, but on Windows, where it names a drive or a stream
        drive = PureWindowsPath(entry.filename).drive or (os.name == "nt" and ":" in entry.filename)
        climbs = name.is_absolute() or ".." in name.parts or bool(drive) or "\0" in entry.filename
        link = entry.create_system == 3 and (entry.external_attr >> 28) == 0xA
        if climbs or link:
            found = "an entry that climbs out of its folder" if climbs else "a link"
            raise VolumeError("unsafe-zip", found=found, where=path)
    total = sum(entry.file_size for entry in entries)
    # against the file itself, not what its entries claim: those of a bomb may share their bytes
    packed = path.stat().st_size
    if len(entries) > MAX_FILES or total > MAX_BYTES or total > max(SMALL_BYTES, MAX_RATIO * packed):
        found = f"{len(entries)} files of {total / 1e9:.1f} GB packed into {packed / 1e6:.1f} MB"
        raise VolumeError("unsafe-zip", found=found, where=path)


def _room(needed: int, folder: str, path: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        found = f"{needed / 1e6:.0f} MB to unpack and {free / 1e6:.0f} MB free"
        raise VolumeError("too-large", found=found, where=path, cure="Free disk space or set TMPDIR.")


def _unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, path: Path) -> None:
    """One entry, by a name of ours below its own folders; never more than it claims."""
    target = folder.joinpath(*PurePosixPath(entry.filename.replace("\\", "/")).parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    left = entry.file_size
    with archive.open(entry) as source, open(target, "wb") as out:
        while part := source.read(1 << 20):
            left -= len(part)
            if left < 0:
                raise VolumeError("unsafe-zip", found="an entry longer than it claims", where=path)
            out.write(part)
