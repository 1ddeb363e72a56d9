"""Time and memory of one meta-gradient, beside higher and TorchOpt on the same network and weights.

    python benchmarks/meta_gradient.py [--quick] [--json FILE]

All sides take turns in one process on one thread, so that a busy machine slows each alike; ratios are
medians over the rounds. Peak memory is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medmeta.episodes import Episode, Examples
from medmeta.learners import create_learner
from medmeta.learners.loss import set_loss
from medmeta.networks import build, feature_size, unet

RATE = 0.05
Side = Callable[[], Any]


def conv4() -> nn.Module:
    """The few-shot literature's four layers of 32, with group norm."""
    layers: list[nn.Module] = []
    for size in (1, 32, 32, 32):
        layers += [nn.Conv2d(size, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten())


def setting(name: str) -> tuple[nn.Module, Episode, int]:
    """Network, episode and number of classes of a row."""
    torch.manual_seed(0)
    if name == "2d":
        label = torch.arange(25) % 5
        sets = [Examples(torch.randn(25, 1, 28, 28), label, tuple("abcde")) for _ in range(2)]
        return conv4(), Episode(*sets), 5
    spec = {"_target_": "monai.networks.nets.BasicUNet", "spatial_dims": 3, "in_channels": 1}
    network = build({**spec, "out_channels": 8, "features": [8, 8, 16, 32, 64, 8]})
    if name == "unet":
        network = build(unet(3, 1))
    sets = []
    for _ in range(2):
        label = torch.zeros(2, 32, 32, 32, dtype=torch.int64)
        label[:, 8:20, 10:22, 12:24] = 1
        sets.append(
            Examples(torch.randn(2, 1, 32, 32, 32) + label.unsqueeze(1), label, ("background", "tumour"))
        )
    return network, Episode(*sets), 2


def whole(network: nn.Module, way: int, dims: int) -> nn.Module:
    """The network with the head as a layer, for the peers."""
    head = nn.Linear(32, way) if dims == 2 else nn.Conv3d(feature_size(network), way, 1)
    return nn.Sequential(copy.deepcopy(network), head)


def ours(name: str, steps: int, order: str, backend: str) -> Side:
    """One meta-gradient of the learner that users call."""
    network, episode, way = setting(name)
    learner = create_learner(
        "maml",
        network,
        way=way,
        feature=32 if name == "2d" else None,
        steps=steps,
        rate=RATE,
        order=order,
        backend=backend,
    )
    return lambda: learner.backward([episode], scale=1.0)


def by_higher(name: str, steps: int) -> Side:
    """The same with higher."""
    import higher

    network, episode, way = setting(name)
    network = whole(network, way, episode.support.image.ndim - 2)
    optimiser = torch.optim.SGD(network.parameters(), lr=RATE)

    def run() -> None:
        with higher.innerloop_ctx(network, optimiser, copy_initial_weights=False) as (fast, descent):
            for _ in range(steps):
                descent.step(loss(fast, episode.support))
            loss(fast, episode.query).backward()

    return run


def by_torchopt(name: str, steps: int) -> Side:
    """The same with TorchOpt."""
    import torchopt

    network, episode, way = setting(name)
    network = whole(network, way, episode.support.image.ndim - 2)
    start = dict(network.named_parameters())
    descent = torchopt.sgd(lr=RATE)

    def run() -> None:
        fast, memory = dict(start), descent.init(start)
        for _ in range(steps):
            value = loss(lambda image: torch.func.functional_call(network, fast, (image,)), episode.support)  # noqa: B023
            slopes = torch.autograd.grad(value, list(fast.values()), create_graph=True)
            updates, memory = descent.update(dict(zip(fast, slopes, strict=True)), memory, inplace=False)
            fast = torchopt.apply_updates(fast, updates, inplace=False)
        loss(lambda image: torch.func.functional_call(network, fast, (image,)), episode.query).backward()

    return run


def loss(model: Callable[[Tensor], Tensor], examples: Examples) -> Tensor:
    """The learners' own loss."""
    guess = model(examples.image)
    return set_loss(guess, examples.label) if examples.segments else F.cross_entropy(guess, examples.label)


def interleave(sides: dict[str, Side], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side, taking turns; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {n: [] for n in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            gc.collect()
            begun = time.perf_counter()
            side()
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """How many times longer one side takes: the median over rounds of the quotient."""
    return statistics.median(s / f for s, f in zip(seconds[slow], seconds[fast], strict=True))


def products(side: Side) -> float:
    """Multiplications and additions of a side's convolutions and matrix products."""

    def plain(image: Any, kernel: Any, size: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * image[0] * kernel[0] * kernel[1] * torch.Size([*image[2:], *size]).numel()

    formulas = {torch.ops.aten.slow_conv_transpose3d: plain}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        side()
    return counter.get_total_flops()


def peak(expression: str) -> float:
    """Peak memory in MiB that a side adds, in a process of its own (Linux sets its high-water mark back)."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import torch, meta_gradient as m\n"
        "torch.set_num_threads(1)\n"
        f"side = {expression}\n"
        "def high(): return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"
        "before = high()\n"
        "side()\n"
        "print(high() - before)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(Path(__file__).parent)]
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(out.stdout.split()[-1]) / 1024


ROWS = {"2D conv-4, 28²": ("2d", 5), "3D UNet, 32³": ("unet", 3), "3D BasicUNet, 32³": ("3d", 3)}


def compare(rounds: int) -> list[dict[str, Any]]:
    """Our default against both peers, and first order against second."""
    rows = []
    for title, (name, steps) in ROWS.items():
        sides = {
            "medmeta": ours(name, steps, "second", "auto"),
            "higher": by_higher(name, steps),
            "torchopt": by_torchopt(name, steps),
            "first order": ours(name, steps, "first", "auto"),
        }
        seconds = interleave(sides, rounds)
        rows.append(
            {
                "row": f"{title}, {steps} steps",
                "seconds": {n: statistics.median(s) for n, s in seconds.items()},
                "over higher": ratio(seconds, "higher", "medmeta"),
                "over torchopt": ratio(seconds, "torchopt", "medmeta"),
                "first over second": ratio(seconds, "medmeta", "first order"),
                "counted": products(sides["medmeta"]) / products(sides["first order"]),
                "peak MiB": {
                    "medmeta": peak(f"m.ours({name!r}, {steps}, 'second', 'auto')"),
                    "higher": peak(f"m.by_higher({name!r}, {steps})"),
                    "torchopt": peak(f"m.by_torchopt({name!r}, {steps})"),
                },
            }
        )
    return rows


def flat(rounds: int) -> dict[str, Any]:
    """Memory and time of many inner steps, each recomputed in the backward pass."""
    memory = {
        f"{backend} {steps}": peak(f"m.ours('unet', {steps}, 'second', {backend!r})")
        for backend in ("loop", "recompute")
        for steps in (2, 10)
    }
    seconds = interleave({b: ours("unet", 10, "second", b) for b in ("loop", "recompute")}, rounds)
    return {
        "peak MiB": memory,
        "growth": memory["recompute 10"] / memory["recompute 2"],
        "time": ratio(seconds, "recompute", "loop"),
    }


def adapting(threads: int) -> float:
    """Seconds to adapt to five volumes of 96 voxels a side."""
    torch.set_num_threads(threads)
    label = torch.zeros(5, 96, 96, 96, dtype=torch.int64)
    label[:, 40:60, 40:60, 40:60] = 1
    support = Examples(torch.randn(5, 1, 96, 96, 96) + label.unsqueeze(1), label, ("background", "tumour"))
    learner = create_learner("proto-maml", build(unet(3, 1)))
    begun = time.perf_counter()
    learner.adapt(support)
    torch.set_num_threads(1)
    return time.perf_counter() - begun


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="two rounds instead of nine")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 2 if options.quick else 9
    rows, memory = compare(rounds), flat(max(2, rounds // 3))
    seconds = {threads: adapting(threads) for threads in sorted({1, min(2, os.cpu_count() or 1)})}
    console = Console(width=120)
    table = Table(title=f"one meta-gradient, second order, 1 thread, {rounds} interleaved rounds")
    heads = (
        "",
        "medmeta s",
        "higher ×",
        "torchopt ×",
        "first order ×",
        "counted ×",
        "MiB",
        "higher MiB",
        "torchopt MiB",
    )
    for column in heads:
        table.add_column(column)
    for row in rows:
        table.add_row(
            row["row"],
            f"{row['seconds']['medmeta']:.3f}",
            f"{row['over higher']:.2f}",
            f"{row['over torchopt']:.2f}",
            f"{row['first over second']:.2f}",
            f"{row['counted']:.2f}",
            *[f"{row['peak MiB'][n]:.0f}" for n in ("medmeta", "higher", "torchopt")],
        )
    console.print(table)
    console.print(
        f"recompute: 10 steps take {memory['growth']:.2f}× the memory of 2, and {memory['time']:.2f}× "
        f"the time of keeping the graph ({memory['peak MiB']['loop 10']:.0f} MiB)"
    )
    each = ", ".join(f"{taken:.1f} s on {threads} thread(s)" for threads, taken in seconds.items())
    console.print(f"adapting to 5 volumes of 96³: {each}")
    console.print("GPU rows: " + ("see below" if torch.cuda.is_available() else "not measured (no GPU)"))
    if options.json:
        options.json.write_text(
            json.dumps(
                {"rows": rows, "recompute": memory, "adapt_seconds": seconds, "torch": torch.__version__}
            )
        )


if __name__ == "__main__":
    main()
