"""Volumes kept preprocessed: once on disk and memory-mapped, or in memory."""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from medmeta.errors import MedmetaError
from medmeta.volumes import entry
from medmeta.volumes.cohort import patient_key
from medmeta.volumes.layouts import CohortError
from medmeta.volumes.plan import Plan
from medmeta.volumes.prepared import Prepared, prepare
from medmeta.volumes.progress import Track, silent
from medmeta.volumes.reading import read_image, read_mask
from medmeta.volumes.record import Volume

_LOG = logging.getLogger(__name__)
_SPARE = 64 * 2**20  # bytes of disk left free


class StoreError(MedmetaError):
    """A store that cannot be filled or read."""


class Store:
    """Volumes after the plan's preprocessing.

    With a folder, each image and each mask is one file named by a hash of the source's bytes, the plan and
    the version, so that a changed source, another plan or another release never meets an old entry; names
    and contents say nothing of the patient. A damaged entry is made anew with one warning. Several
    processes may fill the same folder.

    Args:
        plan: the preprocessing.
        folder: where to keep the volumes; None keeps the latest in memory.
        salt: secret of the patient keys; None draws one (kept in the folder, so that keys stay the same).
        memory: bytes held at most where ``folder`` is None.

    Example:
        >>> import tempfile, numpy as np, nibabel
        >>> file = Path(tempfile.mkdtemp()) / "a.nii.gz"
        >>> nibabel.save(nibabel.Nifti1Image(np.random.rand(8, 9, 10).astype("f4"), np.eye(4)), file)
        >>> volume = Volume("someone", (file,))
        >>> Store(Plan(3, (2.0, 1.0, 1.0), (8, 8, 8), 1)).read(volume).image.shape
        torch.Size([1, 4, 9, 10])
    """

    def __init__(
        self,
        plan: Plan,
        folder: str | Path | None = None,
        *,
        salt: str | None = None,
        memory: int = 2**30,
    ) -> None:
        self.plan = plan
        self.folder = Path(folder) if folder is not None else None
        self._memory = memory
        self._held: OrderedDict[Volume, Prepared] = OrderedDict()
        self._entries: dict[Volume, tuple[entry.Entry, entry.Entry | None]] = {}
        self._lock = threading.Lock()
        self._bytes = 0
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            entry.sweep(self.folder)
        self._salt = salt if salt is not None else self._kept_salt()

    def read(self, volume: Volume) -> Prepared:
        """The volume on the plan's grid.

        Raises:
            VolumeError: where its files cannot be read right.
            CohortError: where the mask does not hold the label, or channels do not fit.
            StoreError: where the disk has no room.
        """
        if self.folder is None:
            return self._from_memory(volume)
        return self._from_disk(volume, self.folder)

    def patient(self, volume: Volume) -> str:
        """Hashed key of a volume's patient, as in what :meth:`read` gives."""
        return patient_key(volume.patient, self._salt)

    def size(self, volumes: Sequence[Volume]) -> int:
        """Bytes that the volumes take in the store, known from a few of them before anything is written.

        The largest of up to 8 volumes is taken for all, so the figure errs on the safe side.
        """
        if not volumes:
            return 0
        step = max(1, len(volumes) // 8)
        sizes = [_bytes(self._prepare(v)) for v in list(volumes)[::step][:8]]
        return max(sizes) * len(volumes)

    def fill(self, volumes: Sequence[Volume], *, workers: int = 2, track: Track = silent) -> None:
        """Prepare all volumes now.

        Args:
            volumes: what to prepare; a volume that is there already costs one check.
            workers: threads (reading and resampling release the interpreter lock).
            track: ``track(items, description=, total=)`` gives the items and shows progress.

        Raises:
            StoreError: before anything is written, where the disk has not the room.
        """
        if self.folder is not None:
            missing = [v for v in volumes if not self._present(v, self.folder)]
            self._check_room(self.size(missing), self.folder)
        with ThreadPoolExecutor(workers) as pool:
            done = pool.map(self.read, volumes)
            for _ in track(done, description="preparing volumes", total=len(volumes)):
                pass

    # -- making ----------------------------------------------------------------------------------

    def _prepare(self, volume: Volume) -> Prepared:
        """Read and prepare, without keeping."""
        image = read_image(volume)
        mask = read_mask(volume, image)
        return prepare(self.plan, image, mask=mask, patient=self.patient(volume), tumour=volume.tumour)

    def _from_memory(self, volume: Volume) -> Prepared:
        with self._lock:
            if volume in self._held:
                self._held.move_to_end(volume)
                return self._held[volume]
        made = self._prepare(volume)
        with self._lock:
            if volume not in self._held:
                self._held[volume] = made
                self._bytes += _bytes(made)
            while len(self._held) > 1 and self._bytes > self._memory:
                self._bytes -= _bytes(self._held.popitem(last=False)[1])
        return made

    def _from_disk(self, volume: Volume, folder: Path) -> Prepared:
        known = self._entries.get(volume)
        if known is None:
            known = self._open(volume, folder)
            self._entries[volume] = known
        kept, target = known
        try:
            image, mask = kept.tensors(), target.tensors() if target else {}
        except entry.EntryError:
            del self._entries[volume]  # removed or replaced while we ran
            return self._from_disk(volume, folder)
        return Prepared(
            image["image"],
            mask.get("mask"),
            image["affine"],
            self.patient(volume),
            volume.tumour,
            mask.get("target"),
        )

    def _open(self, volume: Volume, folder: Path) -> tuple[entry.Entry, entry.Entry | None]:
        """Find both entries, or make them; checked bytewise once a process."""
        image, mask = self._files(volume, folder)
        with entry.locked(image):
            found = [self._checked(file) for file in (image, mask) if file is not None]
            if any(f is None for f in found):
                made = self._prepare(volume)
                self._check_room(_bytes(made), folder)
                self._write(image, {"image": made.image, "affine": made.affine})
                if mask is not None and made.mask is not None and made.target is not None:
                    self._write(mask, {"mask": made.mask, "target": made.target})
                found = [entry.check(file) for file in (image, mask) if file is not None]
        return found[0], found[1] if mask is not None else None  # type: ignore[return-value]

    def _write(self, file: Path, tensors: dict[str, Tensor]) -> None:
        try:
            entry.write(file, tensors)
        except OSError as error:
            raise StoreError(
                "room and leave to write a prepared volume",
                found=f"{error.strerror or type(error).__name__}; nothing is left half-written",
                cure="Free space or name another folder; what is there already is used again.",
            ) from error

    def _checked(self, file: Path) -> entry.Entry | None:
        if not file.exists():
            return None
        try:
            return entry.check(file)
        except entry.EntryError as error:
            _LOG.warning("a damaged entry of the store is made anew (%s)", error)
            return None

    def _files(self, volume: Volume, folder: Path) -> tuple[Path, Path | None]:
        try:
            content = entry.content_hash(volume.image)
            target = entry.content_hash([volume.mask]) if volume.mask else "free"
        except OSError as error:
            raise CohortError(
                "files of a volume that can be read",
                found=f"one that cannot ({type(error).__name__})",
                cure="Open the cohort again; it may have changed since.",
            ) from error
        image = folder / f"{entry.name(content, self.plan.key, volume.series)}.image"
        if volume.mask is None and volume.tumour is not None:
            return image, None
        return image, image.with_name(f"{entry.name(image.stem, target, volume.label)}.mask")

    def _present(self, volume: Volume, folder: Path) -> bool:
        return all(file is None or file.exists() for file in self._files(volume, folder))

    def _check_room(self, needed: int, folder: Path) -> None:
        free = shutil.disk_usage(folder).free
        if needed + _SPARE > free and needed:
            raise StoreError(
                f"{(needed + _SPARE) / 1e6:.0f} MB of disk for the prepared volumes",
                found=f"{free / 1e6:.0f} MB free",
                cure="Free space, name another folder, or plan a coarser spacing.",
            )

    def _kept_salt(self) -> str:
        """The folder's own secret, the same for every process that uses it."""
        if self.folder is None:
            return secrets.token_hex(16)
        file = self.folder / "salt"
        if not file.exists():
            entry.write_once(file, secrets.token_hex(16).encode())
        return file.read_text()


def _bytes(made: Prepared) -> int:
    tensors = [made.image, made.affine, made.mask, made.target]
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
