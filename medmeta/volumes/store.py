"""Volumes kept preprocessed: once on disk and memory-mapped, or in memory."""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from medmeta.errors import MedmetaError
from medmeta.volumes import entry
from medmeta.volumes.cohort import patient_key
from medmeta.volumes.layouts import CohortError
from medmeta.volumes.leaks import voxel_digest
from medmeta.volumes.plan import Plan
from medmeta.volumes.prepared import Prepared, cut_lesion, prepare, prepare_image, prepare_mask
from medmeta.volumes.progress import Track, silent
from medmeta.volumes.reading import read_image, read_mask
from medmeta.volumes.record import Volume

_Key: TypeAlias = tuple[Any, ...]
_Tensors: TypeAlias = dict[str, Tensor]
_Make: TypeAlias = Callable[[Volume], _Tensors]
_Name: TypeAlias = Callable[[Volume, Path], Path]

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
        self._memory, self._bytes = memory, 0
        self._held: OrderedDict[_Key, _Tensors] = OrderedDict()
        self._entries: dict[_Key, entry.Entry] = {}
        self._hashes: dict[tuple[Path, ...], str] = {}
        self._grids: dict[_Key, Any] = {}
        self._voxels: dict[_Key, str] = {}
        self._lock = threading.Lock()
        self._said = False
        if self.folder is not None:
            self._open(self.folder)
        self._salt = salt if salt is not None else self._kept_salt()

    def _open(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                "a folder to keep prepared volumes in",
                found=error.strerror or type(error).__name__,
                cure="Name a folder that can be made.",
            ) from error
        entry.sweep(folder)

    def read(self, volume: Volume) -> Prepared:
        """The volume on the plan's grid, or its lesion where the plan cuts that out.

        Raises:
            VolumeError: where its files cannot be read right, or the mask does not hold the label.
            CohortError: where channels do not fit the plan or each other.
            StoreError: where the disk has no room.
        """
        if self.plan.lesion is None:
            return self._read(volume)
        # cut in memory, from what the disk or the memory keeps: 0.1 MB a lesion
        key = ("lesion", *_mask_key(volume))
        cut = self._from_memory(key, self._make_cut, volume)
        return Prepared(cut["image"], cut["mask"], cut["affine"], self.patient(volume), volume.tumour)

    def _make_cut(self, volume: Volume) -> _Tensors:
        made = cut_lesion(self.plan, self._read(volume))
        assert made.mask is not None
        return {"image": made.image, "mask": made.mask, "affine": made.affine}

    def _read(self, volume: Volume) -> Prepared:
        image = self._kept(_image_key(volume), self._image_file, self._make_image, volume)
        masked = volume.mask is not None or volume.tumour is None
        mask = self._kept(_mask_key(volume), self._mask_file, self._make_mask, volume) if masked else {}
        return Prepared(
            image["image"],
            mask.get("mask"),
            image["affine"],
            self.patient(volume),
            volume.tumour,
            mask.get("target"),
        )

    def patient(self, volume: Volume) -> str:
        """Hashed key of a volume's patient, as in what :meth:`read` gives."""
        return patient_key(volume.patient, self._salt)

    def voxels(self, volume: Volume) -> str:
        """Hashed key of an image's voxels: the same for the same voxels under any name, in any format."""
        key = _image_key(volume)
        if key not in self._voxels:  # prepared in an earlier process
            self._voxels[key] = voxel_digest(read_image(volume))[0]
        return patient_key(self._voxels[key], self._salt)

    @property
    def salt(self) -> str:
        """The secret of the patient keys; whoever has it and an id can tell whose key it is."""
        return self._salt

    def size(self, volumes: Sequence[Volume]) -> int:
        """Bytes that the volumes take in the store, known from a few of them before anything is written.

        The largest of up to 8 volumes is taken for all, so the figure errs on the safe side.
        """
        if not volumes:
            return 0
        step = max(1, len(volumes) // 8)
        sizes = [self._size(v) for v in list(volumes)[::step][:8]]
        images = len({_image_key(v) for v in volumes})
        return max(s[0] for s in sizes) * images + max(s[1] for s in sizes) * len(volumes)

    def _size(self, volume: Volume) -> tuple[int, int]:
        """Bytes of the image and of the mask."""
        try:
            image = read_image(volume)
            made = prepare(self.plan, image, mask=read_mask(volume, image))
        except MedmetaError:  # said when it is its turn to be prepared
            return 0, 0
        masks = {n: t for n, t in (("mask", made.mask), ("target", made.target)) if t is not None}
        return _bytes({"image": made.image, "affine": made.affine}), _bytes(masks)

    def fill(self, volumes: Sequence[Volume], *, workers: int = 2, track: Track = silent) -> None:
        """Prepare all volumes now.

        Args:
            volumes: what to prepare; a volume that is there already costs one check.
            workers: threads (reading and resampling release the interpreter lock).
            track: ``track(items, description=, total=)`` gives the items and shows progress.

        Raises:
            StoreError: before anything is written, where the disk has not the room; after all others are
                prepared, where several volumes cannot be.
            VolumeError: likewise where one cannot be.
        """
        if self.folder is not None:
            missing = [v for v in volumes if not self._image_file(v, self.folder).exists()]
            self._check_room(self.size(missing), self.folder)
        with ThreadPoolExecutor(workers) as pool:
            done = track(
                pool.map(self._refusal, volumes), description="preparing volumes", total=len(volumes)
            )
            refused = [(n, error) for n, error in enumerate(done, start=1) if error is not None]
        if len(refused) == 1:
            raise refused[0][1]
        if refused:
            number, first = refused[0]
            raise StoreError(
                f"{len(volumes)} volumes that can be prepared",
                found=f"{len(refused)} that cannot; the first is number {number}: {first}".rstrip("."),
                cure="Repair or leave out what medmeta inspect finds.",
            ) from first

    def _refusal(self, volume: Volume) -> MedmetaError | None:
        try:
            self.read(volume)
        except MedmetaError as error:
            return error
        return None

    # -- making ----------------------------------------------------------------------------------

    def _make_image(self, volume: Volume) -> _Tensors:
        native = read_image(volume)
        self._grids[_image_key(volume)] = _grid(native)
        self._voxels[_image_key(volume)] = voxel_digest(native)[0]
        voxels, affine = prepare_image(self.plan, native)
        return {"image": voxels, "affine": affine}

    def _make_mask(self, volume: Volume) -> _Tensors:
        key = _image_key(volume)
        if key not in self._grids:
            self._grids[key] = _grid(read_image(volume))
        affine = self._kept(key, self._image_file, self._make_image, volume)["affine"]
        flat, target = prepare_mask(self.plan, read_mask(volume, self._grids[key]), affine)
        return {"mask": flat, "target": target}

    # -- keeping ---------------------------------------------------------------------------------

    def _kept(self, key: _Key, file: _Name, make: _Make, volume: Volume) -> _Tensors:
        """The tensors from where they are kept, made first where they are not."""
        if self.folder is None:
            return self._from_memory(key, make, volume)
        for _ in range(3):  # an entry may be removed between finding and mapping it
            known = self._entries.get(key) or self._find(file(volume, self.folder), make, volume)
            try:
                tensors = known.tensors()
            except entry.EntryError:
                self._entries.pop(key, None)
                continue
            self._entries[key] = known
            return tensors
        raise StoreError(
            "a store folder that stays",
            found="entries that vanish as they are made",
            cure="Give each program that cleans folders another one.",
        )

    def _from_memory(self, key: _Key, make: _Make, volume: Volume) -> _Tensors:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        made = make(volume)
        with self._lock:
            if key not in self._held:
                self._held[key] = made
                self._bytes += _bytes(made)
            while len(self._held) > 1 and self._bytes > self._memory:
                self._bytes -= _bytes(self._held.popitem(last=False)[1])
                self._say_once()
        return made

    def _say_once(self) -> None:
        if not self._said:
            self._said = True
            _LOG.warning(
                "the prepared volumes take more than %.0f MB; those not used lately are prepared again:"
                " name a store folder to keep them all",
                self._memory / 1e6,
            )

    def _find(self, file: Path, make: _Make, volume: Volume) -> entry.Entry:
        """Find an entry, checked bytewise once a process, or make it, once for all processes."""
        with entry.locked(file):
            found = self._checked(file)
            if found is None:
                made = make(volume)
                self._check_room(_bytes(made), file.parent)
                self._write(file, made)
                found = entry.check(file)
        return found

    def _image_file(self, volume: Volume, folder: Path) -> Path:
        return folder / f"{entry.name(self._hash(volume.image), self.plan.key, volume.series)}.image"

    def _mask_file(self, volume: Volume, folder: Path) -> Path:
        image = self._image_file(volume, folder).stem
        target = self._hash((volume.mask,)) if volume.mask and volume.tumour else "free"
        return folder / f"{entry.name(image, target, volume.label)}.mask"

    def _hash(self, files: tuple[Path, ...]) -> str:
        """Hash of the files' bytes, read once a process."""
        if files not in self._hashes:
            try:
                self._hashes[files] = entry.content_hash(files)
            except OSError as error:
                raise CohortError(
                    "files of a volume that can be read",
                    found=f"one that cannot ({type(error).__name__})",
                    cure="Open the cohort again; it may have changed since.",
                ) from error
        return self._hashes[files]

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
        try:
            if not file.exists():
                entry.write_once(file, secrets.token_hex(16).encode())
            return file.read_text(encoding="utf-8")
        except OSError as error:
            raise StoreError(
                "a store folder of your own",
                found=f"{error.strerror or type(error).__name__} for its secret",
                cure="Name another folder, or give the salt.",
            ) from error


def _image_key(volume: Volume) -> _Key:
    return ("image", volume.image, volume.series)


def _mask_key(volume: Volume) -> _Key:
    target = (volume.mask, volume.label) if volume.tumour else None
    return ("mask", volume.image, volume.series, target)


def _grid(native: Any) -> Any:
    """Shape, affine and frame of reference of an image, without its voxels."""
    from monai.data import MetaTensor

    nothing = torch.zeros((1,) * native.ndim).expand(native.shape)
    about = {key: value for key, value in native.meta.items() if key != "affine"}
    return MetaTensor(nothing, affine=native.affine.clone(), meta=about)


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())
