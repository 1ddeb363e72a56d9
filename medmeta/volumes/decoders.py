"""Which package decodes which transfer syntax; permissive licences only."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

# transfer syntax: (name, packages any of which decodes it as (import name, name to install))
_OPENJPEG = ("openjpeg", "pylibjpeg-openjpeg")
_GDCM = ("gdcm", "python-gdcm")
_LS = ("jpeg_ls", "pyjpegls")
SYNTAXES: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "1.2.840.10008.1.2": ("implicit little endian", ()),
    "1.2.840.10008.1.2.1": ("explicit little endian", ()),
    "1.2.840.10008.1.2.1.99": ("deflated", ()),
    "1.2.840.10008.1.2.2": ("explicit big endian", ()),
    "1.2.840.10008.1.2.5": ("RLE", ()),
    "1.2.840.10008.1.2.4.50": ("JPEG baseline", (_GDCM,)),
    "1.2.840.10008.1.2.4.51": ("JPEG extended", (_GDCM,)),
    "1.2.840.10008.1.2.4.57": ("JPEG lossless", (_GDCM,)),
    "1.2.840.10008.1.2.4.70": ("JPEG lossless, first order", (_GDCM,)),
    "1.2.840.10008.1.2.4.80": ("JPEG-LS lossless", (_LS, _GDCM)),
    "1.2.840.10008.1.2.4.81": ("JPEG-LS near lossless", (_LS, _GDCM)),
    "1.2.840.10008.1.2.4.90": ("JPEG 2000 lossless", (_OPENJPEG, _GDCM)),
    "1.2.840.10008.1.2.4.91": ("JPEG 2000", (_OPENJPEG, _GDCM)),
    "1.2.840.10008.1.2.4.201": ("HTJ2K lossless", (_OPENJPEG,)),
    "1.2.840.10008.1.2.4.202": ("HTJ2K lossless RPCL", (_OPENJPEG,)),
    "1.2.840.10008.1.2.4.203": ("HTJ2K", (_OPENJPEG,)),
}


def missing_decoder(syntax: str) -> str:
    """What to do to decode a transfer syntax; ``""`` where it can be decoded now.

    Example:
        >>> missing_decoder("1.2.840.10008.1.2.1")
        ''
        >>> missing_decoder("1.2.840.10008.1.2.4.100")
        'Export the series in another transfer syntax; no permissively licensed decoder reads this one.'
    """
    if syntax not in SYNTAXES:
        return (
            "Export the series in another transfer syntax; no permissively licensed decoder reads this one."
        )
    name, packages = SYNTAXES[syntax]
    if not packages or any(_installed(module) for module, _ in packages):
        return ""
    return f"Run: pip install {packages[0][1]} (it decodes {name})."


@cache
def _installed(module: str) -> bool:
    return find_spec(module) is not None
