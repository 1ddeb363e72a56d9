"""The store: bitwise what was prepared, whatever happens to the folder."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medmeta.volumes import CohortError, Plan, Store, StoreError, Volume, VolumeError
from medmeta.volumes import store as store_module

PLAN = Plan(3, (2.0, 1.0, 1.0), (8, 8, 8), 1)


def volume(folder: Path, name: str = "DOE_JANE", *, seed: int = 0, size: int = 12) -> Volume:
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for kind, voxels in {
        "": random.standard_normal((size, size, size)).astype(np.float32),
        "_m": (random.random((size, size, size)) > 0.7).astype(np.uint8),
    }.items():
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / f"{name}{kind}.nii.gz")
    return Volume(name, (folder / f"{name}.nii.gz",), folder / f"{name}_m.nii.gz", "glioma")


def same(one: Store, two: Store, v: Volume) -> bool:
    a, b = one.read(v), two.read(v)
    pairs = [(a.image, b.image), (a.mask, b.mask), (a.affine, b.affine), (a.target, b.target)]
    return a.patient == b.patient and all(
        (x is None) == (y is None) and (x is None or torch.equal(x, y)) for x, y in pairs
    )


def entries(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in {".image", ".mask"})


def test_disk_and_memory_give_the_same(tmp_path: Path) -> None:
    v = volume(tmp_path / "in")
    free = Volume("q", v.image)
    bare = Volume("r", v.image, tumour="glioma")
    memory, disk = Store(PLAN, salt="s"), Store(PLAN, tmp_path / "out", salt="s")
    for one in (v, free, bare):
        assert same(memory, disk, one)
        assert same(disk, Store(PLAN, tmp_path / "out", salt="s"), one)
    assert disk.read(bare).mask is None
    assert not disk.read(free).mask.any()  # type: ignore[union-attr]
    # one image for all three, two masks
    assert [p.suffix for p in entries(tmp_path / "out")].count(".image") == 1


def test_entries_are_safetensors(tmp_path: Path) -> None:
    v = volume(tmp_path / "in")
    done = Store(PLAN, tmp_path / "out").read(v)
    for file in entries(tmp_path / "out"):
        for name, tensor in load_file(file).items():
            assert torch.equal(tensor, getattr(done, name))


def test_a_reader_cannot_change_the_store(tmp_path: Path) -> None:
    v = volume(tmp_path / "in")
    store = Store(PLAN, tmp_path / "out")
    store.read(v).image.zero_()
    assert store.read(v).image.abs().sum() > 0


def test_nothing_of_the_patient_is_written(tmp_path: Path) -> None:
    store = Store(PLAN, tmp_path / "out", salt="secret")
    key = store.read(volume(tmp_path / "in")).patient
    assert "DOE" not in key
    for file in (tmp_path / "out").rglob("*"):
        assert "DOE" not in str(file.name)
        assert b"DOE" not in file.read_bytes()
        assert b"JANE" not in file.read_bytes()


def test_keys_stay_with_the_folder(tmp_path: Path) -> None:
    v = volume(tmp_path / "in")
    one = Store(PLAN, tmp_path / "out").patient(v)
    assert Store(PLAN, tmp_path / "out").patient(v) == one != Store(PLAN, tmp_path / "other").patient(v)
    assert (tmp_path / "out" / "salt").stat().st_mode & 0o077 == 0


def test_another_source_or_plan_is_another_entry(tmp_path: Path) -> None:
    v = volume(tmp_path / "in")
    Store(PLAN, tmp_path / "out").read(v)
    volume(tmp_path / "in", seed=1)  # the same name with other voxels
    assert same(Store(PLAN, tmp_path / "out", salt="s"), Store(PLAN, salt="s"), v)
    other = Plan(3, (1.0, 1.0, 1.0), (8, 8, 8), 1)
    assert (
        Store(other, tmp_path / "out").read(v).image.shape
        != Store(PLAN, tmp_path / "out").read(v).image.shape
    )
    # crops of another size share their entries
    before = len(entries(tmp_path / "out"))
    Store(Plan(3, (1.0, 1.0, 1.0), (16, 16, 16), 1), tmp_path / "out").read(v)
    assert len(entries(tmp_path / "out")) == before


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "header", "huge"])
def test_a_damaged_entry_is_made_anew_with_one_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    v = volume(tmp_path / "in")
    Store(PLAN, tmp_path / "out").read(v)
    file = next(p for p in entries(tmp_path / "out") if p.suffix == ".image")
    raw = bytearray(file.read_bytes())
    if damage == "flip":
        raw[-100] ^= 1
    elif damage == "header":
        raw[9] = 0
    elif damage == "huge":
        raw[:8] = b"\xff" * 8
    file.write_bytes({"cut": raw[:-50], "empty": b""}.get(damage, raw))
    with caplog.at_level(logging.WARNING):
        assert same(Store(PLAN, tmp_path / "out", salt="s"), Store(PLAN, salt="s"), v)
    assert len([r for r in caplog.records if "made anew" in r.message]) == 1


def test_an_entry_removed_under_a_running_store(tmp_path: Path) -> None:
    v = volume(tmp_path / "in")
    store = Store(PLAN, tmp_path / "out", salt="s")
    store.read(v)
    for file in entries(tmp_path / "out"):
        file.unlink()
    assert same(store, Store(PLAN, salt="s"), v)


def test_a_source_that_vanishes(tmp_path: Path) -> None:
    v = volume(tmp_path / "in")
    v.image[0].unlink()
    with pytest.raises(CohortError, match=r"one that cannot \(FileNotFoundError\)"):
        Store(PLAN, tmp_path / "out").read(v)


def test_size_is_known_before_anything_is_written(tmp_path: Path) -> None:
    volumes = [volume(tmp_path / "in", f"p{i}", seed=i) for i in range(5)]
    store = Store(PLAN, tmp_path / "out")
    size = store.size(volumes)
    assert entries(tmp_path / "out") == []
    assert store.size([*volumes, *(replace(v, tumour="y", label=1) for v in volumes)]) < 1.8 * size
    store.fill(volumes)
    written = sum(p.stat().st_size for p in entries(tmp_path / "out"))
    assert written / 1.3 < size < written * 1.3


def test_progress_names_how_many(tmp_path: Path) -> None:
    seen = {}

    def track(items: object, *, description: str, total: int) -> object:
        seen[description] = total
        return items

    volumes = [volume(tmp_path / "in", f"p{i}", seed=i) for i in range(3)]
    Store(PLAN).fill(volumes, track=track)  # type: ignore[arg-type]
    assert seen == {"preparing volumes": 3}


def test_no_room_is_said_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = [volume(tmp_path / "in", f"p{i}", seed=i) for i in range(3)]
    store = Store(PLAN, tmp_path / "out")
    monkeypatch.setattr(store_module, "_SPARE", 2**62)  # more than any disk has
    with pytest.raises(StoreError, match=r"MB of disk.*MB free"):
        store.fill(volumes)
    assert entries(tmp_path / "out") == []


# a program of its own: a fork of this one could inherit a lock that a thread holds, and wait for ever
FILL = """
import sys
import torch
from pathlib import Path
from medmeta.volumes import Plan, Store, Volume

torch.set_num_threads(1)
folder, out, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
plan = Plan(3, (2.0, 1.0, 1.0), (8, 8, 8), 1)
volumes = [
    Volume(f"p{i}", (folder / f"p{i}.nii.gz",), folder / f"p{i}_m.nii.gz", "glioma") for i in range(count)
]
"""
ALL = FILL + "Store(plan, out, salt='s').fill(volumes, workers=1)"
# files that may not grow beyond 1 kB, as on a disk that is full
LIMITED = (
    FILL
    + """
import resource, signal
from medmeta.volumes import StoreError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    Store(plan, out, salt='s').read(volumes[0])
except StoreError as error:
    sys.exit(7 if "nothing is left half-written" in str(error) else str(error))
"""
)


def program(text: str, folder: Path, count: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", text, str(folder / "in"), str(folder / "out"), str(count)]
    return subprocess.Popen(command)


def test_a_disk_that_fills_leaves_nothing_half_written(tmp_path: Path) -> None:
    volume(tmp_path / "in", "p0")
    assert program(LIMITED, tmp_path, 1).wait(120) == 7
    assert [p.name for p in (tmp_path / "out").iterdir() if p.name != ".lock"] == []


def volume_of(folder: Path, i: int) -> Volume:
    return Volume(f"p{i}", (folder / f"p{i}.nii.gz",), folder / f"p{i}_m.nii.gz", "glioma")


def test_several_processes_fill_one_folder(tmp_path: Path) -> None:
    for i in range(8):
        volume(tmp_path / "in", f"p{i}", seed=i)
    children = [program(ALL, tmp_path, 8) for _ in range(3)]
    assert [child.wait(180) for child in children] == [0, 0, 0]
    store, memory = Store(PLAN, tmp_path / "out", salt="s"), Store(PLAN, salt="s")
    assert all(same(store, memory, volume_of(tmp_path / "in", i)) for i in range(8))
    assert len(entries(tmp_path / "out")) == 16
    assert not list((tmp_path / "out").glob(".part-*"))


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    for i in range(8):
        volume(tmp_path / "in", f"p{i}", seed=i, size=40)
    child = program(ALL, tmp_path, 8)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(list((tmp_path / "out").glob("*.image"))) < 2:
        time.sleep(0.01)
    child.kill()
    child.wait(60)
    store, memory = Store(PLAN, tmp_path / "out", salt="s"), Store(PLAN, salt="s")
    assert all(same(store, memory, volume_of(tmp_path / "in", i)) for i in range(8))


def test_leftovers_of_killed_processes_are_swept(tmp_path: Path) -> None:
    for name, age in {".part-old": 7200, ".part-new": 0}.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    Store(PLAN, tmp_path)
    assert (tmp_path / ".part-new").exists()
    assert not (tmp_path / ".part-old").exists()


def test_memory_is_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    volumes = [volume(tmp_path / "in", f"p{i}", seed=i) for i in range(5)]
    store = Store(PLAN, memory=20_000)
    store.fill(volumes, workers=1)
    assert len(store._held) < 10  # an image and a mask each
    assert store._bytes <= 20_000
    assert len([r for r in caplog.records if "name a store folder" in r.message]) == 1
    assert store.read(volumes[0]).image.shape == (1, 6, 12, 12)


def test_one_image_is_kept_once_for_all_its_targets(tmp_path: Path) -> None:
    v = volume(tmp_path / "in")
    other = replace(v, tumour="cyst", label=1)
    store = Store(PLAN)
    assert store.read(v).image.data_ptr() == store.read(other).image.data_ptr()
    disk = Store(PLAN, tmp_path / "out")
    disk.fill([v, other])
    assert [p.suffix for p in entries(tmp_path / "out")].count(".image") == 1
    assert same(Store(PLAN, tmp_path / "out", salt="s"), Store(PLAN, salt="s"), other)


def test_threads_prepare_the_same(tmp_path: Path) -> None:
    volumes = [volume(tmp_path / "in", f"p{i}", seed=i) for i in range(6)]
    one, many = Store(PLAN, salt="s"), Store(PLAN, tmp_path / "out", salt="s")
    one.fill(volumes, workers=1)
    many.fill(volumes * 2, workers=4)
    assert all(same(one, many, v) for v in volumes)


def test_bad_volumes_are_told_after_the_good_are_prepared(tmp_path: Path) -> None:
    volumes = [volume(tmp_path / "in", f"p{i}", seed=i) for i in range(4)]
    volumes[1].image[0].write_bytes(b"no")
    store = Store(PLAN, tmp_path / "out")
    with pytest.raises(VolumeError):
        store.fill(volumes[1:])
    assert len(entries(tmp_path / "out")) == 4
    volumes[3].image[0].write_bytes(b"no")
    with pytest.raises(StoreError, match=r"4 volumes.*2 that cannot; the first is number 2"):
        Store(PLAN, tmp_path / "other").fill(volumes)


def test_sizes_of_unreadable_volumes_are_left_out(tmp_path: Path) -> None:
    volumes = [volume(tmp_path / "in", f"p{i}", seed=i) for i in range(2)]
    volumes[0].image[0].write_bytes(b"no")
    assert Store(PLAN).size(volumes) > 2000


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="a folder to keep"):
        Store(PLAN, tmp_path / "file" / "store")
