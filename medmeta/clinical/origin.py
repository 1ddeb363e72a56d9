"""What a case's results were made from, kept beside them: a later run takes no other scan's for its own."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmeta.clinical.bundle import BundleError, sha256

NAME = ".origin.json"


@dataclass(frozen=True)
class Origin:
    """Of which scan, by which bundle and as what a case's results were made; it tells of no patient.

    Args:
        salt: drawn for each case, so that equal scans cannot be told by equal hashes.
        scan: keyed hash (BLAKE2b, RFC 7693) of every byte of scan and mask, and of the series asked for.
        bundle: SHA-256 of the bundle's manifest.
        formats: those that were written, in order of the alphabet.
    """

    salt: str
    scan: str
    bundle: str
    formats: tuple[str, ...]

    @staticmethod
    def of(parts: Iterable[str], bundle: str, formats: Sequence[str]) -> Origin:
        """The origin of a case that is made now.

        Args:
            parts: as :func:`parts` gives them.
            bundle: SHA-256 of its manifest.
            formats: those that are written.
        """
        salt = secrets.token_hex(16)
        return Origin(salt, _mark(parts, salt), bundle, tuple(sorted(formats)))

    def save(self, folder: Path) -> None:
        """Write it into a case's folder."""
        content = {"salt": self.salt, "scan": self.scan, "bundle": self.bundle, "formats": self.formats}
        (folder / NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def read(folder: Path) -> Origin | None:
        """The origin of a case that is there; None where none was kept, as by versions before this one."""
        try:
            found: Mapping[str, Any] = json.loads((folder / NAME).read_text(encoding="utf-8"))
            salt, scan, bundle = (str(found[key]) for key in ("salt", "scan", "bundle"))
            return Origin(salt, scan, bundle, tuple(map(str, found["formats"])))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def is_of(self, parts: Iterable[str]) -> bool:
        """Whether these are the very scan and mask."""
        return self.scan == _mark(parts, self.salt)


def parts(name: str, paths: Sequence[Path], mask: Path | None, series: Sequence[str | None]) -> Iterator[str]:
    """What tells a case from all others.

    Args:
        name: of the case. That of a study of an archive tells it already: it is a keyed hash of its UID.
        paths: of the scan, one a channel; none where it lies in an archive.
        mask: of its lesion.
        series: what was asked of it.
    """
    yield "in an archive: " + name if not paths else f"{len(paths)} files or folders"
    for path in (*paths, *([mask] if mask is not None else [])):
        yield " ".join(_hashes(path))
    yield json.dumps(list(series))


def _hashes(path: Path) -> list[str]:
    """Of the contents of a file or of every file below a folder, whatever each is called."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sorted(sha256(file) for file in files)


def _mark(parts: Iterable[str], salt: str) -> str:
    digest = hashlib.blake2b(digest_size=16, key=salt.encode()[:64])
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part.encode())
    return digest.hexdigest()


def refuse_other(folder: Path, parts: Iterable[str], bundle: str) -> Origin:
    """The origin of a case that is there, where it is that of this scan and this bundle.

    Raises:
        BundleError: where it is another's, or not known.
    """
    kept = Origin.read(folder)
    if kept is not None and kept.is_of(parts) and kept.bundle == bundle:
        return kept
    if kept is None:
        found = "a folder that does not say what it was made from"
    elif kept.bundle != bundle:
        found = "those of another bundle"
    else:
        found = "those of another scan, mask or series"
    raise BundleError(
        "results of this very scan and bundle under the name of the case",
        found=found,
        cure="Give another --out, or rename the scan; nothing there was touched.",
    )
