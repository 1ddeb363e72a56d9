"""What a segment may be said to be, by the name of its class: a neoplasm only where the name says so."""

from __future__ import annotations

import re
from typing import TypeAlias

Kind: TypeAlias = tuple[str, str]
"""Names of a category (PS3.16 CID 7150) and a type (CID 7151), as pydicom has them among SNOMED's."""

NEOPLASM: Kind = ("MorphologicallyAbnormalStructure", "Neoplasm")
LESION: Kind = ("MorphologicallyAbnormalStructure", "Lesion")
TISSUE: Kind = ("Tissue", "Tissue")
"""What is true of an organ, a part of a tumour, and of what a number alone names."""

_NEOPLASM = re.compile(r"(tum(ou?r|eur)|neoplas|cancer|carcino|metasta)|\w+omas?$")
_LESION = re.compile(r"lesions?$|nodules?$|mass(es)?$")
_NONE = frozenset({"atheroma", "coma", "glaucoma", "granuloma", "haematoma", "hematoma", "hygroma", "seroma"})
"""Of those that end like a tumour's name, what is none."""
_DENIED = frozenset({"free", "no", "non", "not", "without"})


def kind_of(name: str) -> Kind:
    """Category and type of a class.

    Example:
        >>> [kind_of(name)[1] for name in ("kidney_tumor", "Glioma", "lung nodule", "liver", "label_2")]
        ['Neoplasm', 'Neoplasm', 'Lesion', 'Tissue', 'Tissue']
    """
    words = re.findall(r"[^\W\d_]+", name.lower())
    if _DENIED & set(words):
        return TISSUE
    if any(_NEOPLASM.match(word) and word not in _NONE for word in words):
        return NEOPLASM
    return LESION if any(map(_LESION.match, words)) else TISSUE
