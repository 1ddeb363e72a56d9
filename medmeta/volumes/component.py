"""What MONAI makes of a specification, also where several threads ask at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def asked_again(make: Callable[[], T]) -> T:
    """Give what MONAI makes, asked again where it stumbled.

    MONAI goes through all modules that are loaded, and stumbles where another thread loads one meanwhile (one
    that reads volumes, say); the next time it is there.
    """
    for _ in range(10):
        try:
            return make()
        except RuntimeError as error:
            if "changed size during iteration" not in str(error):
                raise
    return make()


def component(config: Mapping[str, Any]) -> Any:
    """Make the object of a ``_target_`` and its arguments, as a bundle does.

    Example:
        >>> component({"_target_": "Flipd", "keys": "image"}).keys
        ('image',)
    """
    from monai.bundle import ConfigComponent

    return asked_again(ConfigComponent(config=dict(config)).instantiate)
