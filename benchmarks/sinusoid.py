"""Sinusoid regression of the MAML paper (Finn et al. 2017, section 5.1): ten points, ten steps, any wave.

    python benchmarks/sinusoid.py --out sinusoid.png

The engine of every gradient learner takes any loss, here the mean squared error of a regression. Beside
the meta-trained network: the same network pre-trained on all waves at once, fine-tuned with the best of
several rates, chosen on other waves. MAML here learns a rate for each layer, too (Antoniou et al. 2019):
with one fixed rate it needs many more outer steps (the paper took 70 000). Under two minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call

from medmeta.learners.metagradient import InnerLoop, Weights, batched, descend
from medmeta.learners.rates import first_rates, rates_at

POINTS = 10
RATE = 0.01  # where the learned rates start
INNER_STEPS = 5
WAVES = 25  # tasks an outer step, the paper's meta-batch
TEST_WAVES = 200
TEST_STEPS = 10
RATES = (0.001, 0.003, 0.01, 0.03, 0.1)  # rates the pre-trained network may choose from


def wave(n: int, points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw ``n`` waves and ``points`` of each: amplitude 0.1 to 5, phase 0 to pi, x from -5 to 5."""
    high = 0.1 + 4.9 * torch.rand(n, 1, 1, generator=generator)
    phase = math.pi * torch.rand(n, 1, 1, generator=generator)
    x = 10 * torch.rand(n, points, 1, generator=generator) - 5
    return x, high * torch.sin(x - phase)


def network() -> nn.Module:
    """Two hidden layers of 40, as in the paper."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))


def inner_loop(model: nn.Module, data: Weights, *, steps: int, rate: float) -> InnerLoop:
    """One wave as a function of the weights, and of their rates where these are learned."""
    names = [n for n, _ in model.named_parameters()]

    def error(x: Tensor, y: Tensor):  # type: ignore[no-untyped-def]
        return lambda moving, meta: F.mse_loss(functional_call(model, moving, (x,)), y)

    return InnerLoop(
        start=lambda meta: {n: meta[n] for n in names},
        support=error(data["x"][:POINTS], data["y"][:POINTS]),
        query=error(data["x"][POINTS:], data["y"][POINTS:]),
        rate=lambda meta, step: rates_at(meta, names, step, rate),
        steps=steps,
    )


def meta_train(model: nn.Module, outer_steps: int, *, show: bool) -> Weights:
    """MAML, second order, all waves of an outer step at once (``vmap(grad)``); gives weights and rates."""
    generator = torch.Generator().manual_seed(1)
    layers = dict(model.named_parameters())
    rates = {f"rate.{n}": nn.Parameter(r) for n, r in first_rates(layers, "layer", INNER_STEPS).items()}
    weights: Weights = {**layers, **rates}
    optimiser = torch.optim.Adam(weights.values(), 3e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, outer_steps)
    for _ in track(range(outer_steps), "meta-training", disable=not show):
        x, y = wave(WAVES, 2 * POINTS, generator)
        losses, slopes = batched(
            lambda data: inner_loop(model, data, steps=INNER_STEPS, rate=RATE), {"x": x, "y": y}, weights
        )
        for name, weight in weights.items():
            weight.grad = slopes[name] / len(losses)
        nn.utils.clip_grad_norm_(weights.values(), 10.0)
        optimiser.step()
        falling.step()
    return {n: w.detach() for n, w in weights.items()}


def pre_train(model: nn.Module, outer_steps: int, *, show: bool) -> Weights:
    """Ordinary regression on all waves at once, on the same points."""
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, outer_steps)
    for _ in track(range(outer_steps), "pre-training", disable=not show):
        x, y = wave(WAVES, 2 * POINTS, generator)
        optimiser.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimiser.step()
        falling.step()
    return {n: w.detach() for n, w in model.named_parameters()}


def curve(model: nn.Module, weights: Weights, rate: float, seed: int) -> Tensor:
    """Mean squared error on each test wave after 0, 1, … steps, ``(steps + 1, waves)``."""
    x, y = wave(TEST_WAVES, POINTS + 100, torch.Generator().manual_seed(seed))
    errors = torch.zeros(TEST_STEPS + 1, TEST_WAVES)
    for i in range(TEST_WAVES):
        moving = {n: weights[n] for n, _ in model.named_parameters()}
        loop = inner_loop(model, {"x": x[i], "y": y[i]}, steps=1, rate=rate)
        for step in range(TEST_STEPS + 1):
            with torch.no_grad():
                errors[step, i] = loop.query(moving, weights)
            _, moving = descend(loop, {**weights, **moving})
    return errors


def interval(values: Tensor) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over waves."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(values), (2000, len(values)), generator=generator)
    means = values[picks].mean(1)
    return float(means.quantile(0.025)), float(means.quantile(0.975))


def picture(path: Path, curves: dict[str, Tensor], learnt: dict[str, tuple[Weights, float]]) -> None:
    """Error against steps, and one wave learnt from ten points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for name, errors in curves.items():
        bounds = [interval(row) for row in errors]
        line = left.plot(errors.mean(1).tolist(), marker="o", label=name)[0]
        left.fill_between(range(len(errors)), *zip(*bounds, strict=True), color=line.get_color(), alpha=0.2)
    left.axhline(0.1, color="grey", linewidth=0.8, linestyle=":")
    left.set(xlabel="gradient steps on 10 points", ylabel="mean squared error", yscale="log")
    left.legend(frameon=False)
    x, y = wave(1, POINTS, torch.Generator().manual_seed(12))
    grid = torch.linspace(-5, 5, 200).unsqueeze(1)
    model = network()
    for name, (weights, rate) in learnt.items():
        loop = inner_loop(model, {"x": x[0], "y": y[0]}, steps=TEST_STEPS, rate=rate)
        _, end = descend(loop, weights)
        with torch.no_grad():
            right.plot(grid, functional_call(model, end, (grid,)), label=name)
    right.scatter(x[0], y[0], color="black", zorder=3, label="the 10 points")
    right.set(xlabel="x", ylabel="y", title=f"after {TEST_STEPS} steps")
    right.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Train both, choose the pre-trained network's rate on other waves, test, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--out", type=Path, default=Path("sinusoid.png"), help="the picture")
    parser.add_argument("--quick", action="store_true", help="a tenth of the training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console, begun = Console(), time.perf_counter()
    outer_steps = 300 if options.quick else 3000
    model = network()
    learnt = meta_train(network(), outer_steps, show=console.is_terminal)
    trained = pre_train(network(), outer_steps, show=console.is_terminal)
    best = min(RATES, key=lambda rate: float(curve(model, trained, rate, seed=2)[-1].nan_to_num(1e9).mean()))
    curves = {
        "meta-trained (MAML)": curve(model, learnt, RATE, seed=3),
        f"pre-trained, best rate {best:g}": curve(model, trained, best, seed=3),
    }
    picture(options.out, curves, dict(zip(curves, [(learnt, RATE), (trained, best)], strict=True)))
    seconds = time.perf_counter() - begun
    table = Table(title=f"mean squared error on {TEST_WAVES} unseen waves, {POINTS} points, 95 % interval")
    for column in ("network", "0 steps", "1 step", "5 steps", "10 steps"):
        table.add_column(column)
    for name, errors in curves.items():
        cells = [
            f"{float(errors[s].mean()):.3f} ({'–'.join(f'{b:.3f}' for b in interval(errors[s]))})"
            for s in (0, 1, 5, 10)
        ]
        table.add_row(name, *cells)
    console.print(table)
    console.print(f"{outer_steps} outer steps, {seconds:.0f} s, picture in {options.out}")
    if options.json:
        figures = {
            n: {"mean": e.mean(1).tolist(), "interval": [interval(r) for r in e]} for n, e in curves.items()
        }
        options.json.write_text(
            json.dumps({"curves": figures, "seconds": seconds, "outer_steps": outer_steps})
        )


if __name__ == "__main__":
    main()
