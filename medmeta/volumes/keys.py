"""Short keys for identifiers that must not leave the process."""

from __future__ import annotations

import hashlib
import secrets

# made anew in every process: equal identifiers can be told within it, and nothing can be looked up later
_SECRET = secrets.token_bytes(32)


def process_key(identifier: str) -> str:
    """A key that is equal for equal identifiers within one process (and its forks) and tells nothing else.

    Example:
        >>> process_key("1.2.3") == process_key("1.2.3"), process_key("")
        (True, '')
    """
    if not identifier:
        return ""
    return hashlib.blake2b(identifier.encode(), digest_size=8, key=_SECRET).hexdigest()


def series_key(uid: str) -> str:
    """The short name of a series by which it can be chosen: the same in every process.

    A SeriesInstanceUID is long and names its maker; eight characters of its hash serve as well.

    Example:
        >>> series_key("1.2.826.0.1")
        '12a82565'
    """
    return hashlib.blake2b(uid.encode(), digest_size=4).hexdigest()
