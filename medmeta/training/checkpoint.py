"""Files that are whole or not there: temporary name, fsync, rename; safetensors and JSON, never a pickle."""

from __future__ import annotations

import contextlib
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
        raise RunError(
            f"room to write {path.name}",
            found=error.strerror or "a refusing disk",
            cure="Free disk space; the previous file is intact.",
        ) from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON at once."""
    write_bytes(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> None:
    """Write named tensors, and a JSON object in the same file, at once.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_tensors(folder / "a.safetensors", {"w": torch.ones(2)}, {"step": 3})
        >>> read_tensors(folder / "a.safetensors")
        ({'w': tensor([1., 1.])}, {'step': 3})
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, pack(plain, {"about": json.dumps(about or {})}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote.

    Raises:
        RunError: where the file is absent, damaged or holds values that are not finite.
    """
    if not path.is_file():
        raise RunError(f"the file {path.name}", found="none", cure="Give the folder that training wrote.")
    content = path.read_bytes()
    try:
        tensors = parse(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        about = json.loads(header.get("__metadata__", {}).get("about", "{}"))
    except (SafetensorError, ValueError) as error:
        raise RunError(
            f"whole tensors in {path.name}", found="a damaged file", cure="Train again, or take another copy."
        ) from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise RunError(
                f"finite weights in {path.name}", found=f"NaN or infinity in {name}", cure="Train again."
            )
    return tensors, about
