"""A hospital's archive over DICOMweb: its address, who asks, and what goes wrong in asking."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from medmeta.errors import MedmetaError
from medmeta.volumes.quiet import quiet

USER, PASSWORD, TOKEN = "MEDMETA_DICOMWEB_USER", "MEDMETA_DICOMWEB_PASSWORD", "MEDMETA_DICOMWEB_TOKEN"
"""Where credentials are looked for: a user with a password, or a bearer token; else the user's netrc."""

# they write UIDs, addresses and headers of requests
_TALKERS = ("dicomweb_client", "urllib3", "requests")


class PacsError(MedmetaError):
    """An archive that cannot be reached, refuses, or holds something else than it should."""


@dataclass(frozen=True)
class Archive:
    """A DICOMweb service.

    Args:
        url: its root, such as ``https://pacs.example/dicom-web``; never with a password in it.
        timeout: seconds without an answer after which it counts as gone.
        store: whether DICOM results are stored in it.

    Raises:
        PacsError: where the address is none, or holds credentials.

    Example:
        >>> Archive("http://me:secret@pacs.example/dicom-web")
        Traceback (most recent call last):
            ...
        medmeta.clinical.archive.PacsError: wanted an http address without credentials, found another one. \
Set MEDMETA_DICOMWEB_USER and MEDMETA_DICOMWEB_PASSWORD, or use a netrc file.
    """

    url: str
    timeout: float = 60.0
    store: bool = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise PacsError(
                "an http address without credentials",
                found="another one",
                cure=f"Set {USER} and {PASSWORD}, or use a netrc file.",
            )

    def client(self) -> Any:
        """A client that asks once and never again: what was sent twice might be stored twice."""
        try:
            import requests
            from dicomweb_client.web import DICOMwebClient
        except ImportError as error:
            raise PacsError(
                "the package dicomweb-client", found="none", cure="pip install 'medmeta[pacs]'"
            ) from error
        session = requests.Session()
        token, user = os.environ.get(TOKEN), os.environ.get(USER)
        if token:
            session.auth = _Bearer(token)
        elif user:
            session.auth = (user, os.environ.get(PASSWORD, ""))
        client = DICOMwebClient(self.url.rstrip("/"), session=session, timeout=self.timeout)
        client.set_http_retry_params(retry=False)
        return client

    @contextlib.contextmanager
    def asked(self, action: str) -> Iterator[None]:
        """Turn whatever goes wrong in talking to the archive into one refusal that names no study.

        Args:
            action: what the archive is asked for, in words.
        """
        import requests

        with quiet(), _silent():
            try:
                yield
            except requests.HTTPError as error:
                raise _refused(error, action) from None
            except requests.exceptions.RequestException as error:
                raise self._gone(error, action) from None
            except (OSError, MemoryError, MedmetaError):
                raise  # a local disk, or said already
            except Exception as error:  # noqa: BLE001 - what arrives cut or damaged can raise anything in a parser
                raise PacsError(
                    f"an answer of the archive to {action}",
                    found=f"one that is cut or no DICOMweb ({type(error).__name__})",
                    cure="Run it again; if it stays so, check that the address is the service's root.",
                ) from None

    def _gone(self, error: Exception, action: str) -> PacsError:
        late = "timed out" in str(error).lower()
        found = (
            f"none within {self.timeout:g} s"
            if late
            else f"a connection that failed ({type(error).__name__})"
        )
        cure = "Run it again with --resume when the archive answers."
        return PacsError(f"an answer of the archive to {action}", found=found, cure=cure)


class _Bearer:
    """A bearer token; as an object, so that a netrc file does not take its place."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the logs of HTTP silent."""
    loggers = [logging.getLogger(name) for name in _TALKERS]
    before = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)


def _refused(error: Any, action: str) -> PacsError:
    code = error.response.status_code
    if code in (401, 403):
        cure = f"Set {USER} and {PASSWORD}, or {TOKEN}, or a netrc file."
        return PacsError("credentials that the archive accepts", found=f"HTTP {code}", cure=cure)
    if code in (404, 410):
        return vanished(f"HTTP {code} on {action}")
    return PacsError(
        f"an archive that does {action}", found=f"HTTP {code}", cure="Ask who runs the archive; run it again."
    )


def vanished(found: str) -> PacsError:
    """The refusal of a study that is not there, or not whole.

    Example:
        >>> str(vanished("none"))
        'wanted the study in the archive, found none. Check the UID; it may have been moved or deleted.'
    """
    cure = "Check the UID; it may have been moved or deleted."
    return PacsError("the study in the archive", found=found, cure=cure)
