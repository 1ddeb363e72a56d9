"""Episodes a second and resident memory: the store against MONAI's CacheDataset and PersistentDataset.

Every side does the same preprocessing (the plan's transforms) and gives the same number of crops of the same
size from as many random patients; rounds are interleaved in one process and ratios of each round are
summarised by their median. Memory is what a fresh process gains from before it opens the data until it has
served its episodes.

    python benchmarks/episodes.py [--quick] [--json FILE] [COHORT…]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")  # of MONAI's import

import psutil  # noqa: E402
import torch  # noqa: E402
from monai.bundle import ConfigComponent  # noqa: E402
from monai.data import CacheDataset, PersistentDataset  # noqa: E402
from monai.networks.nets import UNet  # noqa: E402
from monai.transforms import (  # noqa: E402
    Compose,
    EnsureChannelFirstd,
    FgBgToIndicesd,
    Lambdad,
    LoadImaged,
    RandCropByPosNegLabeld,
    SpatialPadd,
)

from medmeta.episodes import Episode, Task, TaskSource, generator_of, prefetch, segmentation_task  # noqa: E402
from medmeta.volumes import Plan, Store, make_plan, open_cohort  # noqa: E402

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "volumes"
SHOT, QUERY, CROPS = 3, 2, 2
SIDES = ("store", "store in memory", "CacheDataset", "PersistentDataset")
Draw = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


def task_of(cohort: Path, plan: Plan, folder: Path | None) -> Task:
    """The first tumour type (or structure) of a cohort as a task."""
    opened = open_cohort(cohort)
    store = Store(plan, folder, memory=2**34)
    return segmentation_task(opened.volumes, opened.tumours[0], store, crops=CROPS)


def ours(task: Task) -> Draw:
    """Episode number i from the store."""
    task.store.fill(task.volumes)

    def draw(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        episode = task.episode(shot=SHOT, query=QUERY, generator=generator_of(0, index))
        return episode.support.image, episode.query.label

    return draw


def monai_side(kind: str, task: Task, folder: Path) -> Draw:
    """The same with a MONAI dataset: a random patient's item is its crops."""
    plan = task.store.plan
    label = task.volumes[0].label
    steps = [ConfigComponent(config=c).instantiate() for c in plan.transforms(("image",), masks=("mask",))]
    crop = RandCropByPosNegLabeld(
        ["image", "mask"],
        "mask",
        plan.patch,
        pos=1,
        neg=1,
        num_samples=CROPS,
        fg_indices_key="mask_fg_indices",
        bg_indices_key="mask_bg_indices",
        allow_smaller=True,
    )
    whole = Compose(
        [
            LoadImaged(["image", "mask"]),
            EnsureChannelFirstd(["image", "mask"]),
            Lambdad("mask", Is(label)),
            *steps,
            FgBgToIndicesd("mask"),  # kept with the volume: only the crop is drawn anew
            crop,
            SpatialPadd(["image", "mask"], plan.patch),
        ]
    )
    items = [{"image": str(v.image[0]), "mask": str(v.mask)} for v in task.volumes]
    if kind == "CacheDataset":
        # draw() copies the crops as it stacks them, and nothing writes on what is cached
        data: Any = CacheDataset(items, whole, progress=False, num_workers=1, copy_cache=False)
    else:
        data = PersistentDataset(items, whole, cache_dir=folder)
        for i in range(len(items)):
            data[i]

    def draw(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = random.Random(index).sample(range(len(items)), SHOT + QUERY)
        crops = [crop for i in chosen for crop in data[i]]
        image = torch.stack([c["image"].as_tensor() for c in crops])
        mask = torch.stack([c["mask"].as_tensor()[0].long() for c in crops])
        return image[: SHOT * CROPS], mask[SHOT * CROPS :]

    return draw


class Is:
    """Whether a voxel has a label; a class so that PersistentDataset can hash it."""

    def __init__(self, label: int | None) -> None:
        self.label = label

    def __call__(self, mask: Any) -> Any:
        return (mask == self.label).float() if self.label is not None else (mask > 0).float()


def side(kind: str, cohort: Path, plan: Plan, folder: Path) -> Draw:
    """One of the four sides, ready to draw from."""
    if kind.startswith("store"):
        return ours(task_of(cohort, plan, None if kind.endswith("memory") else folder))
    return monai_side(kind, task_of(cohort, plan, None), folder)


def speed(draw: Draw, first: int, count: int) -> float:
    """Episodes a second."""
    start = time.perf_counter()
    for index in range(first, first + count):
        draw(index)
    return count / (time.perf_counter() - start)


def memory(kind: str, cohort: Path, plan: Plan, folder: Path) -> float:
    """MB that a fresh process gains by opening the data and serving 100 episodes; folders are warm."""
    command = [sys.executable, __file__, str(cohort), "--memory-of", kind, "--folder", str(folder)]
    done = subprocess.run(command, input=plan.to_json(), capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def print_memory(kind: str, cohort: Path, folder: Path) -> None:
    """In the fresh process: print the MB gained."""
    plan = Plan.from_json(sys.stdin.read())
    open_cohort(cohort)
    warm = side(kind, tiny(folder), Plan(3, (1.0, 1.0, 1.0), (8, 8, 8), 1), folder / "tiny" / kind)
    warm(0)  # libraries loaded, so that only the data counts below
    before = psutil.Process().memory_info().rss
    draw = side(kind, cohort, plan, folder / kind)
    for index in range(100):
        draw(index)
    print((psutil.Process().memory_info().rss - before) / 1e6)


def tiny(folder: Path) -> Path:
    """A cohort of 6 volumes of 8 voxels a side."""
    import nibabel
    import numpy as np

    for sub in ("imagesTr", "labelsTr"):
        (folder / "tiny" / sub).mkdir(parents=True, exist_ok=True)
    for i in range(6):
        voxels = np.random.default_rng(i).random((8, 8, 8)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / "tiny" / "imagesTr" / f"t{i}.nii.gz")
        mask = nibabel.Nifti1Image((voxels > 0.5).astype(np.uint8), np.eye(4))
        nibabel.save(mask, folder / "tiny" / "labelsTr" / f"t{i}.nii.gz")
    return folder / "tiny"


def network_share(cohort: Path, plan: Plan, folder: Path, rounds: int) -> float:
    """Share of a training step that is the network, episodes drawn ahead; on the GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    opened = open_cohort(cohort)
    store = Store(plan, folder)
    store.fill(opened.volumes)
    source = TaskSource(opened.volumes, store, shot=SHOT, query=QUERY, crops=CROPS)
    dims = plan.spatial_dims
    network = UNet(dims, plan.channels, 2, (8, 16, 32), (2, 2), num_res_units=1).to(device)
    optimiser = torch.optim.Adam(network.parameters())

    def step(episode: Episode) -> None:
        logits = network(torch.cat([episode.support.image, episode.query.image]).to(device))
        labels = torch.cat([episode.support.label, episode.query.label]).to(device)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimiser.step()
        optimiser.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    fixed = [source[i] for i in range(4)]
    for episode in fixed:
        step(episode)
    stream = prefetch(source, range(4 * rounds))
    shares = []
    for _ in range(rounds):  # by turns, so that what else the machine does falls on both
        start = time.perf_counter()
        for episode in fixed:
            step(episode)
        alone = time.perf_counter() - start
        start = time.perf_counter()
        for episode in itertools.islice(stream, len(fixed)):
            step(episode)
        shares.append(alone / (time.perf_counter() - start))
    return min(1.0, statistics.median(shares))


def compare(cohort: Path, rounds: int, count: int) -> dict[str, Any]:
    """All sides on one cohort."""
    plan = make_plan(open_cohort(cohort).volumes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draws = {kind: side(kind, cohort, plan, folder / kind) for kind in SIDES}
        for draw in draws.values():
            speed(draw, 0, 5)
        runs = [{kind: speed(d, 1000 * r, count) for kind, d in draws.items()} for r in range(rounds)]
        held = {kind: memory(kind, cohort, plan, folder) for kind in SIDES}
        share = network_share(cohort, plan, folder / "store", 2 * rounds)
    middle = {kind: statistics.median(run[kind] for run in runs) for kind in SIDES}
    ratio = {kind: statistics.median(run["store"] / run[kind] for run in runs) for kind in SIDES}
    return {
        "cohort": cohort.name,
        "patch": list(plan.patch),
        "patches_an_episode": (SHOT + QUERY) * CROPS,
        "network_share_of_a_step": round(share, 3),
        "rows": {
            kind: {
                "episodes_per_second": round(middle[kind], 1),
                "store_is_times_as_fast": round(ratio[kind], 2),
                "MB": round(held[kind], 1),
                "store_takes_of_its_memory": round(held["store"] / held[kind], 3) if held[kind] > 0 else None,
            }
            for kind in SIDES
        },
    }


def show(result: dict[str, Any]) -> None:
    """Print one cohort's table."""
    patch = "×".join(map(str, result["patch"]))
    print(f"\n{result['cohort']}: {result['patches_an_episode']} crops of {patch} an episode")
    print(f"{'':20}{'episodes/s':>12}{'store is':>10}{'MB':>9}{'store takes':>13}")
    for kind, row in result["rows"].items():
        share = row["store_takes_of_its_memory"]
        print(
            f"{kind:20}{row['episodes_per_second']:12.1f}{row['store_is_times_as_fast']:9.2f}×{row['MB']:9.1f}"
            + (f"{share:12.1%}" if share is not None else f"{'':>12}")
        )

    print(f"a training step of a small UNet is {result['network_share_of_a_step']:.0%} network")


def main() -> int:
    """Compare on hippocampus and CHAOS, or on the cohorts given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "cohort", nargs="*", type=Path, default=[DATA / "hippocampus", DATA / "nc" / "chaos_t2"]
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="3 rounds of 10 episodes instead of 9 of 50")
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory_of:
        print_memory(args.memory_of, args.cohort[0], args.folder)
        return 0
    rounds, count = (3, 10) if args.quick else (9, 50)
    results = [compare(cohort, rounds, count) for cohort in args.cohort]
    for result in results:
        show(result)
    if args.json:
        about = {"torch": torch.__version__, "cpus": os.cpu_count(), "rounds": rounds, "episodes": count}
        args.json.write_text(json.dumps({"results": results, "about": about}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
