"""A real Orthanc for tests, on a loopback port with a password; and servers that behave badly."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

USER, PASSWORD = "clinic", "orthanc-of-a-test"
PLUGINS = Path("/usr/share/orthanc/plugins")


@dataclass(frozen=True)
class Orthanc:
    """A server that runs."""

    port: int

    @property
    def dicomweb(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    def ask(self, path: str, **options: Any) -> Any:
        answer = requests.request(
            options.pop("method", "GET"),
            f"http://127.0.0.1:{self.port}{path}",
            auth=(USER, PASSWORD),
            timeout=20,
            **options,
        )
        answer.raise_for_status()
        return answer

    def put(self, files: Sequence[Path]) -> None:
        for file in files:
            self.ask("/instances", method="POST", data=file.read_bytes())

    def instances(self) -> dict[str, int]:
        """Stored instances by modality."""
        found: dict[str, int] = {}
        for one in self.ask("/instances?expand").json():
            series = self.ask(f"/series/{one['ParentSeries']}").json()
            modality = series["MainDicomTags"]["Modality"]
            found[modality] = found.get(modality, 0) + 1
        return found

    def download(self, modality: str, folder: Path) -> Path:
        """The one instance of a modality."""
        for one in self.ask("/instances?expand").json():
            series = self.ask(f"/series/{one['ParentSeries']}").json()
            if series["MainDicomTags"]["Modality"] == modality:
                file = folder / f"{modality}.dcm"
                file.write_bytes(self.ask(f"/instances/{one['ID']}/file").content)
                return file
        raise AssertionError(f"no {modality} in the archive")

    def clear(self) -> None:
        for one in self.ask("/patients").json():
            self.ask(f"/patients/{one}", method="DELETE")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Orthanc]:
    """Start Orthanc; skip the test where it is not installed."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None or not (PLUGINS / "libOrthancDicomWeb.so").exists():
        pytest.skip("Orthanc with DICOMweb is not installed (Debian: orthanc, orthanc-dicomweb)")
    port = free_port()
    config = {
        "HttpPort": port,
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "Plugins": [str(PLUGINS)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(config))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
        try:
            server = Orthanc(port)
            _wait(server, process)
            yield server
        finally:
            process.terminate()
            process.wait(20)


def _wait(server: Orthanc, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        with contextlib.suppress(requests.RequestException):
            server.ask("/dicom-web/studies")
            return
        assert process.poll() is None, "Orthanc ended"
        time.sleep(0.1)
    raise AssertionError("Orthanc does not answer")


@contextlib.contextmanager
def between(
    port: int,
    *,
    cut_posts_after: int | None = None,
    mute_after: int | None = None,
    cut_answers_after: int | None = None,
) -> Iterator[int]:
    """A proxy on its own port: it cuts a POST or all answers after so many bytes, or is silent after so many
    requests."""
    listener = socket.create_server(("127.0.0.1", 0))
    seen = [0]
    over = threading.Event()

    def serve(client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", port)) as server:
            threading.Thread(target=_pump, args=(server, client, cut_answers_after), daemon=True).start()
            sent = 0
            posting = False
            while data := _receive(client):
                if data.split(b" ", 1)[0] in (b"GET", b"POST"):
                    seen[0] += 1
                    posting = data.startswith(b"POST")
                if mute_after is not None and seen[0] > mute_after:
                    over.wait(30)  # takes the request and never answers
                    return
                if posting and cut_posts_after is not None:
                    part = data[: max(0, cut_posts_after - sent)]
                    server.sendall(part)
                    sent += len(part)
                    if sent >= cut_posts_after:
                        return
                    continue
                server.sendall(data)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def _receive(one: socket.socket) -> bytes:
    with contextlib.suppress(OSError):
        return one.recv(1 << 16)
    return b""


def _pump(source: socket.socket, target: socket.socket, most: int | None) -> None:
    sent = 0
    with contextlib.suppress(OSError):
        while (most is None or sent < most) and (data := _receive(source)):
            part = data if most is None else data[: most - sent]
            target.sendall(part)
            sent += len(part)
        target.shutdown(socket.SHUT_RDWR if most is not None else socket.SHUT_WR)
