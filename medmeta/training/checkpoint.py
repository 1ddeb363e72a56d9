"""Files that are whole or not there: temporary name, fsync, rename; safetensors and JSON, never a pickle."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as pack
from torch import Tensor

from medmeta.errors import MedmetaError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class RunError(MedmetaError):
    """A run that cannot be written, read or gone on with."""


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file at once: a kill or a full disk at any moment leaves the old one or the new.

    Raises:
        RunError: where the disk refuses, with the old file untouched.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise cannot_write(path, error, "the previous file is intact") from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def cannot_write(path: Path, error: OSError, still: str) -> RunError:
    """What to say where the disk refuses a file.

    Args:
        path: of the file.
        error: the disk's own.
        still: what of the run is not lost.
    """
    cure = "Free disk space" if error.errno in _FULL else "Make the folder one that can be written"
    return RunError(
        f"room to write {path.name}", found=error.strerror or "a refusing disk", cure=f"{cure}; {still}."
    )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON at once."""
    write_bytes(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> None:
    """Write named tensors, a JSON object and the checksum of both in one file, at once.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_tensors(folder / "a.safetensors", {"w": torch.ones(2)}, {"step": 3})
        >>> read_tensors(folder / "a.safetensors")
        ({'w': tensor([1., 1.])}, {'step': 3})
    """
    # a copy of each, for safetensors refuses one tensor under two names, as tied weights are
    copied: dict[str, Any] = {"device": "cpu", "copy": True, "memory_format": torch.contiguous_format}
    plain = {name: tensor.detach().to(**copied) for name, tensor in tensors.items()}
    said = json.dumps(about or {})
    write_bytes(path, pack(plain, {"about": said, "sha256": _digest(plain, said)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote.

    Raises:
        RunError: where the file is absent, damaged or holds values that are not finite.
    """
    if not path.is_file():
        raise RunError(f"the file {path.name}", found="none", cure="Give the folder that training wrote.")
    content = path.read_bytes()
    damaged = RunError(
        f"whole tensors in {path.name}", found="a damaged file", cure="Train again, or take another copy."
    )
    try:
        tensors = parse(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])["__metadata__"]
        said, digest = header["about"], header["sha256"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise damaged from error
    if digest != _digest(tensors, said):
        raise damaged
    about = json.loads(said)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise RunError(
                f"finite weights in {path.name}", found=f"NaN or infinity in {name}", cure="Train again."
            )
    return tensors, about


def _digest(tensors: Mapping[str, Tensor], about: str) -> str:
    """SHA-256 over names, types, shapes and bytes: safetensors itself does not see a flipped bit."""
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
