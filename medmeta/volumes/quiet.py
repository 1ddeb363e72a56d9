"""Other libraries' warnings and logs, kept silent while a file is read: they quote paths and patient data."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_lock = threading.Lock()
_inside = 0
_before: Any = None
_pydicom = logging.getLogger("pydicom")
_pydicom.addHandler(logging.NullHandler())  # or Python's handler of last resort speaks
_propagate = True


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore Python warnings and pydicom's log; all is as before when the last thread leaves."""
    global _inside, _before, _propagate
    with _lock:
        if _inside == 0:
            _before = warnings.catch_warnings()
            _before.__enter__()
            warnings.simplefilter("ignore")
            _propagate, _pydicom.propagate = _pydicom.propagate, False
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _pydicom.propagate = _propagate
                _before.__exit__(None, None, None)
