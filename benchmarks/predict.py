"""Whole scans: medmeta at the plan's spacing beside MONAI's SlidingWindowInferer on the scan's own grid.

A CT-like phantom (a trunk with fat, a spine and lesions in a field of air) and the same small UNet on both
sides, trained for as many steps on phantoms of other seeds, once at the plan's spacing and once at the
scan's. Both sides take windows of as many voxels with the same overlap and weights; they take turns. Seconds
are those of the processor, for other work may share the machine; wall-clock seconds stand beside them.

    python benchmarks/predict.py --json predict.json
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
from monai.losses import DiceCELoss
from scipy.ndimage import gaussian_filter

from medmeta.clinical import windows
from medmeta.clinical.loading import BundlePredictor
from medmeta.clinical.whole import on_grid, segment
from medmeta.networks import build, unet
from medmeta.volumes import Plan

SPACING = (0.8, 0.8, 2.5)
COARSE = (2.0, 2.0, 2.5)
PATCH = (48, 48, 32)


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
        angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.75)
        centre = (
            wide * far * np.cos(angle),
            deep * far * np.sin(angle),
            rng.uniform(0.1, 0.9) * shape[2] * 2.5,
        )
        radius, z = rng.uniform(8, 18), np.arange(shape[2]) * 2.5
        near = (x[:, None] - centre[0]) ** 2 + (y[None] - centre[1]) ** 2
        truth |= (near[..., None] + (z - centre[2]) ** 2 < radius**2) & (slice_ == 40.0)[..., None]
    image[truth] = 110.0
    for k in range(shape[2]):
        image[..., k] = gaussian_filter(image[..., k], 0.6) + rng.normal(0, 25, shape[:2])
    affine = torch.diag(torch.tensor([-0.8, -0.8, 2.5, 1.0], dtype=torch.float64))
    return MetaTensor(torch.from_numpy(image)[None], affine=affine), truth


def plan_of(spacing: tuple[float, float, float]) -> Plan:
    return Plan(3, spacing, PATCH, 1, intensity="window", low=-150, high=250, mean=40, std=60)


def trained(spacing: tuple[float, float, float], shape: tuple[int, ...], steps: int) -> BundlePredictor:
    """A UNet that outlines the phantom's lesions, trained at one spacing."""
    plan = plan_of(spacing)
    torch.manual_seed(0)
    network = torch.nn.Sequential(build(unet(3, 1, base=8)), torch.nn.Conv3d(16, 2, 1))
    cases = []
    for seed in (101, 102):
        image, truth = phantom(shape, seed)
        voxels, _ = on_grid(plan, image)
        mask = MetaTensor(torch.from_numpy(truth)[None].float() * 200 - 100, affine=image.affine)
        there, _ = on_grid(Plan(3, spacing, PATCH, 1, intensity="window", low=-100, high=100, std=100), mask)
        cases.append((voxels, (there > 0).long()))
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    adam = torch.optim.Adam(network.parameters(), lr=4e-3)
    rng = np.random.default_rng(0)
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = 4e-3 * min(1.0, 2 * (1 - step / steps))
        pieces = []
        for _ in range(2):
            voxels, mask = cases[rng.integers(len(cases))]
            start = [
                int(rng.integers(max(n - p, 0) + 1)) for n, p in zip(voxels.shape[1:], PATCH, strict=True)
            ]
            if rng.random() < 0.7:  # around a lesion
                hot = mask[0].nonzero()
                middle = hot[rng.integers(len(hot))].tolist()
                start = [
                    int(np.clip(m - rng.integers(p), 0, max(n - p, 0)))
                    for m, p, n in zip(middle, PATCH, voxels.shape[1:], strict=True)
                ]
            cut = (slice(None), *(slice(s, s + p) for s, p in zip(start, PATCH, strict=True)))
            pieces.append((voxels[cut], mask[cut]))
        image, label = (torch.stack(side) for side in zip(*pieces, strict=True))
        adam.zero_grad()
        loss(network(image), label).backward()
        adam.step()
    return BundlePredictor(network, plan, ("background", "lesion"), "segmentation", {})


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
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = (192, 192, 48) if options.quick else (512, 512, 140)
    small = (192, 192, 48) if options.quick else (320, 320, 64)
    steps = options.steps or (60 if options.quick else 250)
    sides: dict[str, Callable[[], np.ndarray]] = {}
    image, truth = phantom(shape, 0)
    coarse, fine = trained(COARSE, small, steps), trained(SPACING, small, steps)
    sides["medmeta, plan's spacing, body mask"] = lambda: segment(coarse, image).labels
    sides["MONAI, native grid"] = lambda: plain(fine, image)
    sides["MONAI, native grid, network of the plan's spacing"] = lambda: plain(coarse, image)
    voxels, _ = on_grid(coarse.plan, image)
    inside = windows.body(voxels, COARSE)
    every = windows.windows(voxels.shape[1:], PATCH)
    rows: dict[str, dict[str, list[float]]] = {
        name: {"cpu_s": [], "wall_s": [], "dice": []} for name in sides
    }
    for _ in range(options.rounds):
        for name, side in sides.items():
            labels, cpu, wall = timed(side)
            for key, value in (("cpu_s", cpu), ("wall_s", wall), ("dice", dice(labels > 0, truth))):
                rows[name][key].append(value)
            print(f"  {name}: {cpu:.1f} s, {wall:.1f} s, Dice {rows[name]['dice'][-1]:.4f}", flush=True)
    table = {name: {k: statistics.median(v) for k, v in row.items()} for name, row in rows.items()}
    ours = next(iter(table.values()))
    visited = sum(bool(inside[w].any()) for w in every)
    print(f"\n{' x '.join(map(str, shape))} at {SPACING} mm, plan {COARSE} mm, {options.threads} thread(s)")
    print(f"load {os.getloadavg()[0]:.1f}; windows visited {visited} of {len(every)}")
    print(f"{'':52}{'CPU s':>9}{'wall s':>9}{'ratio':>7}{'Dice':>8}")
    for name, row in table.items():
        ratio = row["cpu_s"] / ours["cpu_s"]
        print(f"{name:52}{row['cpu_s']:9.1f}{row['wall_s']:9.1f}{ratio:7.2f}{row['dice']:8.4f}")
    if options.json:
        about = {
            "shape": shape,
            "spacing": SPACING,
            "plan": COARSE,
            "threads": options.threads,
            "steps": steps,
        }
        options.json.write_text(json.dumps({"results": table, **about}, indent=1) + "\n")


if __name__ == "__main__":
    main()
