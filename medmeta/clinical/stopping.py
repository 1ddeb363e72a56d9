"""SIGTERM while predicting: what is half done is taken away, and the process ends with 143."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Terminated(BaseException):
    """The process was told to stop; no ordinary handler of errors catches it."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Raise :class:`Terminated` in the main thread at the first SIGTERM; those that follow are ignored.

    Only the main thread may listen; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what tidies up is not interrupted again
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def remove(folder: Path) -> None:
    """Remove a temporary folder, to the end also where SIGTERM comes meanwhile."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except Terminated:
        shutil.rmtree(folder, ignore_errors=True)
        raise
