"""Tumour types under another name: other case, spelling or number."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_SPELLINGS = (("tumour", "tumor"), ("oed", "ed"), ("haem", "hem"), ("leuk", "leuc"), ("ae", "e"), ("oe", "e"))
_LONG = 6
"""Letters from which a word that differs in one of them is taken for the same word misspelt."""


def words_of(name: str) -> tuple[str, ...]:
    """A type's name as plain words: lower case, no accents, American spelling, singular.

    Example:
        >>> words_of("Haemorrhagic Tumours_T2"), words_of("hemorrhagic-tumor t2")
        (('hemorrhagic', 'tumor', 't2'), ('hemorrhagic', 'tumor', 't2'))
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    for british, american in _SPELLINGS:
        plain = plain.replace(british, american)
    return tuple(_singular(word) for word in re.findall(r"[a-z0-9]+", plain))


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def same_type(one: str, other: str) -> bool:
    """Whether two names seem to be of one type.

    Numbers and short words must agree (``label_1`` is not ``label_2``); one letter of a long word may not.

    Example:
        >>> same_type("Meningioma", "meningeomas"), same_type("glioma T1", "glioma T2")
        (True, False)
    """
    a, b = words_of(one), words_of(other)
    if not a or not b:
        return one == other
    if "".join(a) == "".join(b):
        return True
    return len(a) == len(b) and all(_same_word(x, y) for x, y in zip(a, b, strict=True))


def _same_word(one: str, other: str) -> bool:
    if one == other:
        return True
    if min(len(one), len(other)) < _LONG or not (one + other).isalpha() or abs(len(one) - len(other)) > 1:
        return False
    short, long = sorted((one, other), key=len)
    first = next((i for i, c in enumerate(short) if c != long[i]), len(short))
    return short[first + (len(short) == len(long)) :] == long[first + 1 :]


def same_types(name: str, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that seem to be the type ``name``.

    Example:
        >>> same_types("liver tumour", ["Liver-Tumor", "liver cyst"])
        ['Liver-Tumor']
    """
    return [other for other in names if same_type(name, other)]
