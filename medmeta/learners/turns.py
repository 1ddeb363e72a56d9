"""Turns at a network or a memory: one thread at a time, and no fork while one of them is amid its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_held: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_holding = threading.Lock()
_others: list[threading.RLock] = []
"""Locks that are no network's."""
_taken: list[threading.RLock] = []
"""What the thread that forks holds meanwhile, with ``_holding``."""


def lock() -> threading.RLock:
    """Make a lock that a fork waits for, as it does for every network's turn."""
    made = threading.RLock()
    with _holding:
        _others.append(made)
    return made


@contextmanager
def held(network: nn.Module) -> Iterator[None]:
    """Let one thread at a time at a network, the same one as often as it asks.

    Where a network runs with weights that are moving, another thread would find those of this one's task in
    it, and would copy them. So would a process that is forked meanwhile, without the thread that takes them
    out again: a fork waits for its turn at every network.
    """
    with _holding:
        own = _held.setdefault(network, threading.RLock())
    with own:
        yield


def _before_fork() -> None:
    """Take all turns, or none: who has one and asks for another must not find it here."""
    while True:
        _holding.acquire()
        mine: list[threading.RLock] = []
        for own in [*_others, *_held.values()]:
            if not own.acquire(blocking=False):
                break
            mine.append(own)
        else:
            _taken[:] = mine
            return
        for other in mine:
            other.release()
        _holding.release()
        with own:  # until whoever has it is done
            pass


def _after_fork() -> None:
    """Let go, in both processes."""
    for own in _taken:
        own.release()
    _taken.clear()
    _holding.release()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


__all__ = ["held", "lock"]
