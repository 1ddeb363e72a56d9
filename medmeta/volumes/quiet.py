"""Other libraries' warnings, kept off the user's screen while a file is read: they may quote patient data."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_lock = threading.Lock()
_inside = 0
_before: Any = None


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore Python warnings inside; the filters of before come back when the last thread leaves."""
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = warnings.catch_warnings()
            _before.__enter__()
            warnings.simplefilter("ignore")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _before.__exit__(None, None, None)
