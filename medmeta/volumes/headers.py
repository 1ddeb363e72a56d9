"""Headers of many files, in several processes where there are many."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

from medmeta.volumes.dicom_header import Header, read_header
from medmeta.volumes.errors import VolumeError
from medmeta.volumes.progress import Track, silent

__all__ = ["read_headers", "silent"]

Found: TypeAlias = "Header | VolumeError | None"
# a process of its own takes the time of some thousand headers to start
_LEAST, _BATCH = 4000, 500
# the room is entered past its front door, whose imports (torch) a reader of headers does not need
_WORKER = """
import sys, types
room = types.ModuleType("medmeta.volumes")
room.__path__ = [sys.argv[1]]
sys.modules["medmeta.volumes"] = room
from medmeta.volumes.headers import serve
serve()
"""


def read_headers(
    files: Sequence[Path], *, workers: int, track: Track, least: int = _LEAST
) -> Iterator[Found]:
    """The header of each file in order, or why it could not be read.

    Args:
        files: DICOM files.
        workers: processes to use; parsing headers is Python and holds the interpreter lock.
        track: shows progress.
        least: files from which on other processes are worth their start.
    """
    if not files:
        return
    many = workers > 1 and len(files) >= least
    found = _by_processes(files, workers) if many else map(_header, files)
    yield from track(found, description="reading headers", total=len(files))


def _header(file: Path) -> Found:
    try:
        return read_header(file)
    except VolumeError as error:
        return error


def _by_processes(files: Sequence[Path], workers: int) -> Iterator[Found]:
    """Batches to processes of our own: no fork of a threaded program, no second run of the user's script."""
    batches = [files[start : start + _BATCH] for start in range(0, len(files), _BATCH)]
    with ThreadPoolExecutor(workers) as threads:
        idle: list[subprocess.Popen[bytes]] = []
        started = [_start() for _ in range(min(workers, len(batches)))]
        idle += started
        try:
            yield from itertools.chain.from_iterable(threads.map(lambda batch: _ask(idle, batch), batches))
        finally:
            for process in started:
                process.kill()
                process.communicate()


def _start() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _WORKER, str(Path(__file__).parent)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _ask(idle: list[subprocess.Popen[bytes]], batch: Sequence[Path]) -> list[Found]:
    """One batch answered by an idle process; by ourselves where that fails."""
    process = idle.pop()
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        pickle.dump(list(batch), process.stdin)
        process.stdin.flush()
        answer: list[Found] = pickle.load(process.stdout)  # noqa: S301 - from our own process
    except (OSError, EOFError, pickle.UnpicklingError):
        return [_header(file) for file in batch]
    finally:
        idle.append(process)
    return answer


def serve() -> None:
    """Answer batches of paths on stdin with their headers on stdout, until stdin ends."""
    out, sys.stdout = sys.stdout.buffer, sys.stderr
    while True:
        try:
            batch = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that started us
        except EOFError:
            return
        pickle.dump([_header(file) for file in batch], out)
        out.flush()
