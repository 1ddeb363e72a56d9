"""The one family of refusals: what was wanted, what was found, what to do."""

from __future__ import annotations

import difflib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path


class MedmetaError(Exception):
    """A request that cannot be served, said in one line.

    Args:
        wanted: what the caller needs to have given, e.g. ``"at least 6 patients with 'glioma'"``.
        found: what was there instead. Never a patient's name, id or date.
        cure: what to do about it, as an imperative sentence.

    Example:
        >>> str(MedmetaError("a positive shot", found="0", cure="Give --shots 1 or more."))
        'wanted a positive shot, found 0. Give --shots 1 or more.'
    """

    def __init__(self, wanted: str, *, found: str, cure: str) -> None:
        self.wanted, self.found, self.cure = wanted, found, cure
        super().__init__(f"wanted {wanted}, found {found}. {cure}")


def nearest(name: str, names: Iterable[str]) -> str:
    """Say which of ``names`` was probably meant by ``name``.

    Example:
        >>> nearest("mamll", ["maml", "reptile"])
        "Did you mean 'maml'? There are: maml, reptile."
    """
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    guess = f"Did you mean {close[0]!r}? " if close else ""
    return f"{guess}There are: {', '.join(known)}."


def new_folder(path: str | os.PathLike[str], error: type[MedmetaError]) -> Path:
    """The path of a folder to write, which must not be there.

    Args:
        path: asked for.
        error: to raise where it is there.

    Example:
        >>> new_folder("/", MedmetaError)
        Traceback (most recent call last):
            ...
        medmeta.errors.MedmetaError: wanted a folder that does not exist: , found one that does. \
Give another --out.
    """
    folder = Path(path)
    if folder.exists():
        wanted = f"a folder that does not exist: {folder.name}"
        raise error(wanted, found="one that does", cure="Give another --out.")
    return folder


def work_folder(folder: Path, error: type[MedmetaError]) -> Path:
    """Make a hidden folder beside one that is to be written, to be moved there once all of it is written.

    Raises:
        error: where it cannot be made.

    Example:
        >>> import tempfile
        >>> work_folder(Path(tempfile.mkdtemp()) / "report", MedmetaError).name.startswith(".report.")
        True
    """
    work = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")  # in a container every process is no. 1
    try:
        work.mkdir(parents=True)
    except OSError as refused:
        why = refused.strerror or type(refused).__name__
        raise error(f"room to write {folder.name}", found=why, cure="Give another --out.") from refused
    return work
