"""Episodes drawn ahead, so that the network never waits for the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, runtime_checkable

from medmeta.episodes.examples import Episode


@runtime_checkable
class Numbered(Protocol):
    """Episodes by number, such as :class:`medmeta.episodes.TaskSource`."""

    def __getitem__(self, index: int, /) -> Episode:
        """Episode number ``index``, the same whenever it is asked for."""
        ...


def prefetch(
    source: Numbered, indices: Iterable[int], *, ahead: int = 4, workers: int = 2
) -> Iterator[Episode]:
    """The episodes of ``indices`` in order, up to ``ahead`` of them drawn in threads beforehand.

    Each episode depends on its number alone, so the stream is the same with any number of workers. An error
    comes up where its episode would have come; closing the iterator stops the threads.

    Args:
        source: where the episodes come from.
        indices: their numbers.
        ahead: episodes kept ready, 1 or more.
        workers: threads (copying voxels releases the interpreter lock).
    """
    waiting: deque[Future[Episode]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="episodes") as pool:
        try:
            for index in indices:
                waiting.append(pool.submit(source.__getitem__, index))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
