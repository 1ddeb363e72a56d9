"""UIDs that are the same each time the same result is made, so that an archive holds it once."""

from __future__ import annotations

import hashlib
import uuid

_SPACE = uuid.UUID("8b1d4c1e-6c2f-5f0a-9a57-0d9d2f6b7c11")


def derived(*parts: str | bytes) -> str:
    """A UID of the root 2.25 (PS3.5 B.2: a UUID as a number) that follows from its parts.

    Args:
        parts: what it is for and what it is made from; equal parts in equal order give the equal UID. UIDs
            among them cannot be found from it: it is a hash.

    Example:
        >>> derived("seg", "1.2.3") == derived("seg", "1.2.3") != derived("sr", "1.2.3")
        True
        >>> derived("ab", "c") == derived("a", "bc")
        False
    """
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "big"))
        digest.update(raw)
    return f"2.25.{uuid.uuid5(_SPACE, digest.hexdigest()).int}"
