"""Progress shown by whoever has a screen, passed in as a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, TypeVar

_T = TypeVar("_T")

Track: TypeAlias = Callable[..., Iterable[Any]]
"""``track(items, description=, total=)`` gives the items one by one and shows how far they are."""


def silent(items: Iterable[_T], **_: Any) -> Iterable[_T]:
    """Give the items and show nothing.

    Example:
        >>> list(silent([1, 2], description="counting", total=2))
        [1, 2]
    """
    return items
