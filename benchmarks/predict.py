"""Whole scans: medmeta at the plan's spacing beside MONAI's SlidingWindowInferer on the scan's own grid.

A CT-like phantom (a trunk with fat and bone, and lesions, in a field of air) and the same small UNet on both
sides, trained for as many steps on phantoms of other seeds, once at the plan's spacing and once at the
scan's. What a voxel is taught is the part of it that is lesion, so that a network can place an outline
between voxels. Both sides take windows of as many voxels with the same overlap and weights; they take turns,
with one thread and with two. Where other work shares the machine, the processor's seconds count.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/predict.py --rounds 3 --json predict.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from scipy.ndimage import distance_transform_edt, gaussian_filter

from medmeta.clinical import windows
from medmeta.clinical.loading import BundlePredictor
from medmeta.clinical.whole import on_grid, segment
from medmeta.networks import build, unet
from medmeta.volumes import Plan

SPACING = (0.8, 0.8, 2.5)
PATCH = (32, 32, 32)
TAUGHT, BATCH, RATE = PATCH, 2, 4e-3  # patches to train on, how many at once, and how fast
BONE = 3.0
"""What bone is brighter than, scaled as planned."""
RADIUS = (12, 24)
"""Millimetres, of lesions."""
NOISE = 15.0
"""HU; lesions are 70 HU brighter than what surrounds them."""


def phantom(shape: tuple[int, ...], seed: int) -> tuple[Any, np.ndarray]:
    """HU as MetaTensor ``(1, x, y, z)``, and the lesions ``(x, y, z)``."""
    rng = np.random.default_rng(seed)
    step = np.array(SPACING)
    x, y = (np.arange(n) * s - n * s / 2 for n, s in zip(shape[:2], step[:2], strict=True))
    wide, deep = 0.42 * shape[0] * step[0], 0.32 * shape[1] * step[1]
    around = (x[:, None] / wide) ** 2 + (y[None] / deep) ** 2
    slice_ = np.where(around < 1, np.where(around < 0.8, 40.0, -90.0), -1000.0)
    slice_[(x[:, None] / 20) ** 2 + ((y[None] - 0.6 * deep) / 20) ** 2 < 1] = 400.0
    image = np.repeat(slice_[..., None], shape[2], 2).astype(np.float32)
    truth = np.zeros(shape, bool)
    for _ in range(max(3, shape[2] // 12)):
        angle, far = rng.uniform(np.pi, 2 * np.pi), rng.uniform(0.1, 0.6)  # before the spine, in soft tissue
        centre = (
            wide * far * np.cos(angle),
            deep * far * np.sin(angle),
            rng.uniform(0.1, 0.9) * shape[2] * 2.5,
        )
        radius, z = rng.uniform(*RADIUS), np.arange(shape[2]) * 2.5
        near = (x[:, None] - centre[0]) ** 2 + (y[None] - centre[1]) ** 2
        truth |= (near[..., None] + (z - centre[2]) ** 2 < radius**2) & (slice_ == 40.0)[..., None]
    image[truth] = 110.0
    for k in range(shape[2]):
        image[..., k] = gaussian_filter(image[..., k], 0.6) + rng.normal(0, NOISE, shape[:2])
    affine = torch.diag(torch.tensor([-0.8, -0.8, 2.5, 1.0], dtype=torch.float64))
    return MetaTensor(torch.from_numpy(image)[None], affine=affine), truth


def depth(truth: np.ndarray) -> np.ndarray:
    """Millimetres from the nearest voxel's face on the outline, positive inside ``(x, y, z)``."""
    inner, outer = (distance_transform_edt(side, SPACING) for side in (truth, ~truth))
    return np.where(truth, inner - SPACING[0] / 2, SPACING[0] / 2 - outer).astype(np.float32)


def plan_of(spacing: tuple[float, float, float]) -> Plan:
    return Plan(3, spacing, PATCH, 1, intensity="window", low=-150, high=250, mean=40, std=60)


def trained(spacing: tuple[float, float, float], shape: tuple[int, ...], steps: int) -> BundlePredictor:
    """A UNet that outlines the phantom's lesions, trained at one spacing."""
    plan = plan_of(spacing)
    torch.manual_seed(0)
    network = torch.nn.Sequential(build({**unet(3, 1, base=8), "norm": None}), torch.nn.Conv3d(16, 2, 1))
    cases = []
    for seed in range(101, 107):
        image, truth = phantom(shape, seed)
        part = MetaTensor(torch.from_numpy(depth(truth))[None], affine=image.affine)
        there, _ = on_grid(Plan(3, spacing, PATCH, 1, intensity="window", low=-9, high=9), part)
        cases.append((on_grid(plan, image)[0], (there / spacing[0] + 0.5).clamp(0, 1)))
    adam = torch.optim.Adam(network.parameters(), lr=RATE)
    rng = np.random.default_rng(0)
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = RATE * min(1.0, 2 * (1 - step / steps))
        pieces = [patch(*cases[rng.integers(len(cases))], rng) for _ in range(BATCH)]
        image, label = (torch.stack(side) for side in zip(*pieces, strict=True))
        adam.zero_grad()
        torch.nn.functional.cross_entropy(network(image), torch.cat([1 - label, label], 1)).backward()
        adam.step()
    return BundlePredictor(network.eval(), plan, ("background", "lesion"), "segmentation", {})


def patch(voxels: torch.Tensor, part: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """A piece to train on: around a lesion, around bone, or anywhere."""
    around = rng.choice(3, p=(0.35, 0.3, 0.35))
    if around < 2:
        hot = (part[0] > 0.5 if around == 0 else voxels[0] > BONE).nonzero()
        middle = hot[rng.integers(len(hot))].numpy() - rng.integers(TAUGHT)
    else:
        middle = rng.integers(np.maximum(np.array(voxels.shape[1:]) - TAUGHT, 0) + 1)
    start = np.clip(middle, 0, np.maximum(np.array(voxels.shape[1:]) - TAUGHT, 0))
    cut = (slice(None), *(slice(int(s), int(s) + p) for s, p in zip(start, TAUGHT, strict=True)))
    return voxels[cut], part[cut]


def plain(made: BundlePredictor, image: Any) -> np.ndarray:
    """MONAI's transforms and inferer on the native grid."""
    from monai.transforms import ScaleIntensityRange

    p = made.plan
    low, high = ((b - p.mean) / p.std for b in (p.low, p.high))
    voxels = ScaleIntensityRange(p.low, p.high, low, high, clip=True)(image)
    inferer = SlidingWindowInferer(PATCH, sw_batch_size=4, overlap=0.5, mode="gaussian")
    with torch.inference_mode():
        return inferer(voxels[None], made)[0].argmax(0).as_tensor().numpy().astype(np.uint8)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def timed(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    return made, time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="192 x 192 x 48, few steps")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--plan", type=float, default=1.5, help="mm in plane that medmeta works at")
    options = parser.parse_args()
    torch.set_num_threads(max(options.threads))
    shape = (192, 192, 48) if options.quick else (512, 512, 140)
    small = (192, 192, 48) if options.quick else (320, 320, 64)
    steps = options.steps or (60 if options.quick else 1200)
    spacing = (options.plan, options.plan, SPACING[2])
    image, truth = phantom(shape, 0)
    coarse, fine = trained(spacing, small, steps), trained(SPACING, small, steps)
    sides: dict[str, Callable[[], np.ndarray]] = {
        "medmeta, plan's spacing, body mask": lambda: segment(coarse, image).labels,
        "MONAI, native grid": lambda: plain(fine, image),
    }
    voxels, _ = on_grid(coarse.plan, image)
    inside = windows.body(voxels, spacing)
    every = windows.windows(voxels.shape[1:], PATCH)
    visited = sum(bool(inside[w].any()) for w in every)
    about = f"plan {spacing} mm, {steps} steps; windows visited {visited} of {len(every)}"
    print(f"{' x '.join(map(str, shape))} at {SPACING} mm, {about}")
    results = {}
    for threads in options.threads:
        torch.set_num_threads(threads)
        results[threads] = show(threads, rounds(sides, truth, options.rounds))
    if options.json:
        told = {"shape": shape, "spacing": SPACING, "plan": spacing, "steps": steps}
        options.json.write_text(json.dumps({"results": results, **told}, indent=1) + "\n")


def rounds(
    sides: dict[str, Callable[[], np.ndarray]], truth: np.ndarray, count: int
) -> dict[str, dict[str, list[float]]]:
    """Both sides in turn, so many times."""
    rows: dict[str, dict[str, list[float]]] = {
        name: {"cpu_s": [], "wall_s": [], "dice": []} for name in sides
    }
    for _ in range(count):
        for name, side in sides.items():
            labels, cpu, wall = timed(side)
            for key, value in (("cpu_s", cpu), ("wall_s", wall), ("dice", dice(labels > 0, truth))):
                rows[name][key].append(value)
            print(f"  {name}: {cpu:.1f} s, {wall:.1f} s, Dice {rows[name]['dice'][-1]:.4f}", flush=True)
    return rows


def show(threads: int, rows: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Medians, and medians of the rounds' ratios to the first side."""
    ours = next(iter(rows.values()))
    print(f"\n{threads} thread(s), load {os.getloadavg()[0]:.1f}, {len(ours['dice'])} rounds")
    print(f"{'':40}{'CPU s':>9}{'ratio':>7}{'wall s':>9}{'ratio':>7}{'Dice':>8}")
    made = {}
    for name, row in rows.items():
        one = {key: statistics.median(values) for key, values in row.items()}
        for key in ("cpu_s", "wall_s"):
            each = [theirs / own for theirs, own in zip(row[key], ours[key], strict=True)]
            one[f"{key}_ratio"] = statistics.median(each)
        made[name] = one
        print(
            f"{name:40}{one['cpu_s']:9.1f}{one['cpu_s_ratio']:7.2f}{one['wall_s']:9.1f}"
            f"{one['wall_s_ratio']:7.2f}{one['dice']:8.4f}"
        )
    return made


if __name__ == "__main__":
    main()
