"""One file of the store: a few tensors in the safetensors format, checked, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

fcntl: Any
try:
    import fcntl
except ImportError:  # not on Windows, where two processes may then prepare the same volume twice
    fcntl = None

VERSION = "1"
_DTYPES = {"F32": torch.float32, "F64": torch.float64, "U8": torch.uint8, "I32": torch.int32}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class EntryError(Exception):
    """A file of the store that is gone, damaged or of another version."""


@dataclass(frozen=True)
class Entry:
    """Where each tensor lies in a file.

    Args:
        file: the file.
        parts: (dtype, shape, first byte) of each tensor.
    """

    file: Path
    parts: Mapping[str, tuple[str, tuple[int, ...], int]]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors, memory-mapped: a page is read when it is touched, writes stay in this process."""
        try:
            with open(self.file, "rb") as file:
                raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            return {name: _view(raw, *part) for name, part in self.parts.items()}
        except (OSError, ValueError) as error:
            raise EntryError("an entry is gone") from error


def _view(raw: mmap.mmap, dtype: str, shape: tuple[int, ...], start: int) -> Tensor:
    kind, count = _DTYPES[dtype], math.prod(shape)
    if not count:
        return torch.zeros(shape, dtype=kind)
    return torch.frombuffer(raw, dtype=kind, count=count, offset=start).reshape(shape)


def write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write under a temporary name and move into place, so that a reader sees all or nothing."""
    widest_first = sorted(tensors, key=lambda name: -tensors[name].element_size())  # keeps each one aligned
    arrays = {name: tensors[name].contiguous().numpy() for name in widest_first}
    parts, offset, check = {}, 0, 0
    for name, array in arrays.items():
        parts[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
        check = zlib.crc32(_raw(array), check)
    about = {"__metadata__": {"crc32": str(check), "version": VERSION}, **parts}
    header = json.dumps(about).encode()
    header += b" " * (-(len(header) + 8) % 64)  # data begin on a 64-byte boundary
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".part-", delete=False) as out:
        try:
            out.write(len(header).to_bytes(8, "little") + header)
            for array in arrays.values():
                out.write(_raw(array))
            out.flush()
            os.fsync(out.fileno())
            os.replace(out.name, file)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(out.name)
            raise


def _raw(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def check(file: Path) -> Entry:
    """Read a file's header and compare its checksum.

    Raises:
        EntryError: where it is not as written.
    """
    try:
        raw = np.memmap(file, mode="r", dtype=np.uint8)
        length = int.from_bytes(raw[:8].tobytes(), "little")
        about = json.loads(raw[8 : 8 + length].tobytes())
        meta = about.pop("__metadata__")
        start = 8 + length
        parts = {
            name: (str(p["dtype"]), tuple(map(int, p["shape"])), start + int(p["data_offsets"][0]))
            for name, p in about.items()
        }
        if any(dtype not in _DTYPES for dtype, _, _ in parts.values()):
            raise EntryError("another version")
        if meta["version"] != VERSION:
            raise EntryError("another version")
        if zlib.crc32(raw[start:].data) != int(meta["crc32"]):
            raise EntryError("its checksum differs")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise EntryError("its header cannot be read") from error
    return Entry(file, parts)


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock beside a file; the system gives it up when the process ends, however it ends.

    Where there are no locks (a folder to be read only, some network drives) two processes may prepare the
    same volume; each writes it whole, and it is the same.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            lock = held.enter_context(open(file.parent / ".lock", "ab"))
            # one byte of the lock file a name: entries are made side by side, the same entry only once
            byte = int.from_bytes(hashlib.blake2b(file.name.encode(), digest_size=4).digest(), "little")
            if fcntl is not None:
                fcntl.lockf(lock, fcntl.LOCK_EX, 1, byte)
        yield


def content_hash(paths: Sequence[Path]) -> str:
    """Hash of the bytes of files and of all files in folders."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            with open(file, "rb") as source:
                digest.update(hashlib.file_digest(source, "blake2b").digest() if _FAST else _slow(source))
    return digest.hexdigest()


def _slow(source: object) -> bytes:
    digest = hashlib.blake2b()
    while chunk := source.read(2**20):  # type: ignore[attr-defined]
        digest.update(chunk)
    return digest.digest()


_FAST = hasattr(hashlib, "file_digest")  # Python 3.11


def name(*parts: object) -> str:
    """File name from what an entry depends on."""
    return hashlib.blake2b(repr((VERSION, *parts)).encode(), digest_size=16).hexdigest()


def write_once(file: Path, content: bytes) -> None:
    """Write a small private file whole, unless another process has just done so."""
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".part-") as part:  # readable by its owner alone
        part.write(content)
        part.flush()
        with contextlib.suppress(FileExistsError):
            os.link(part.name, file)


def sweep(folder: Path) -> None:
    """Remove what processes that were killed left half-written an hour ago or longer."""
    for part in folder.glob(".part-*"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > 3600:
                part.unlink()
