"""One labelled case of an organ never labelled before: the field's one-shot protocol on CHAOS T2 MR.

    python benchmarks/chaos.py ../shared/data/volumes/nc/chaos_t2 --out /tmp/chaos --json chaos.json
    python benchmarks/chaos.py ../shared/data/volumes/nc/chaos_t2 --out /tmp/chaos --folds 1 --methods \
        "local-prototype" "in-context" "body-trees, deep" --steps 150

Cases sorted by number in five folds of four; the first of a fold (or another: --support) gives the support,
three slices at 1/6, 1/2 and 5/6 of the organ's range, the other three are judged (Ouyang et al. 2020, section
4.1). Two scores: the literature's (slices that contain the organ; methods that compare with one slice at a
time take that of their third of the range) and the hospital's (whole volume, nothing known, all three
support slices at once). This one as the method says and, "one piece", with one connected piece kept, over no
more slices than the support's organ has, for which most speaks. Dice a volume at the native 256 x 256, then
the mean an organ.

Most methods learn from the support alone: they are the same in both settings and shown as setting 1. What
is trained beforehand knows no label: superpixels of the other folds' slices are the targets, weights
start at random; setting 2 trains without every slice that shows an organ of the pair that is held out (liver
and spleen, or both kidneys). Weights and finished volumes are kept under --out: the same command goes on.
So are the settings that made them, and a run with others is refused there. The data are CC BY-NC-SA: the
figures are for non-commercial use.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from chaos_data import CLASSES, ORGANS, PAIRS, Scan, read, training_slices
from kept import folder_for
from over_types import Case, over_types
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import load_model, save_model
from scipy import ndimage
from sklearn.ensemble import ExtraTreesClassifier
from torch import Tensor, nn

from medmeta.episodes import Examples
from medmeta.episodes.selfsupervised import SuperpixelSource
from medmeta.learners import create_learner
from medmeta.learners.body import looks
from medmeta.learners.growing import Growing
from medmeta.learners.local_prototype import places
from medmeta.learners.one_organ import surest, within
from medmeta.networks import build, unet
from medmeta.training.outer import Schedule, meta_train

FOLDS = 5
DECIDING = ("quick", "seed", "steps")
"""Settings that decide what is trained and judged, and not only how much of it."""
SCORES = ("slices", "volume", "one piece")


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Args:
        learner: its name, or None for a floor.
        options: of the learner.
        trained: whether it learns from superpixels beforehand.
        apart: whether it learns from the support slices one by one, each for its third of the range.
    """

    learner: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = False
    apart: bool = False


def trees(**options: Any) -> Method:
    return Method("body-trees", {"stride": 2, "stacked": True, **options}, trained=bool(options.get("deep")))


METHODS: Mapping[str, Method] = {
    "copied mask": Method(None, apart=True),
    "pixel trees": Method(None),
    "pixel trees, plain": Method(None),
    "body-trees": trees(),
    "body-trees, edges as said": trees(edges=False),
    "body-trees, places as they are": trees(shift=0.0),
    "body-trees, no copies": trees(gain=0.0, shift=0.0),
    "body-trees, slices apart": trees(stacked=False),
    "body-trees, place in the image": trees(places="image"),
    "body-trees, no place": trees(places="none"),
    "body-trees, own scan": trees(own=1),
    "body-trees, deep": trees(deep=True),
    "local-prototype": Method(
        "local-prototype", {"window": 8, "stride": 2, "place": 0.3}, trained=True, apart=True
    ),
    "in-context": Method("in-context", {"stride": 4}, trained=True, apart=True),
}
ALONE = tuple(name for name, method in METHODS.items() if not method.trained)


class Copied:
    """The floor: the support's mask, where nothing is known the pixels that most of its slices have."""

    def adapt(self, support: Examples) -> Any:
        share = (support.label > 0).float().mean(0)
        vote = torch.stack([0.5 - share, share - 0.5 + 1e-6])
        return lambda image: vote.expand(len(image), *vote.shape)


Points = Callable[[Tensor], Any]
"""A slice ``(1, side, side)`` to its pixels' features, ``(pixels, 7)``."""


@dataclass(frozen=True)
class PixelTrees:
    """The floor: trees on a pixel's intensity, two smoothings, slope, spread, row and column."""

    points: Points
    grown: Callable[[Any, Any], Any]

    def adapt(self, support: Examples) -> Any:
        seen = np.concatenate([self.points(image) for image in support.image])
        return PixelTreesPredictor(self.grown(seen, support.label.flatten().numpy()), self.points)


@dataclass(frozen=True)
class PixelTreesPredictor:
    """The fitted floor; each slice by itself."""

    trees: Any
    points: Points

    def __call__(self, image: Tensor) -> Tensor:
        share = [self.trees.predict_proba(self.points(one)).T for one in image]
        return torch.from_numpy(np.stack(share)).float().reshape(len(image), 2, *image.shape[2:])


def points(image: Tensor) -> Any:
    """The looks of ``body-trees`` and the place, on the logarithmic image."""
    maps = torch.cat([torch.from_numpy(looks(image[None])), places(image[None])], 1)
    return maps[0].flatten(1).T.numpy()


def plain_trees(seen: Any, label: Any) -> Any:
    """As scikit-learn grows them: the classes are not balanced."""
    return ExtraTreesClassifier(60, min_samples_leaf=3, random_state=0).fit(seen, label)


def plain_points(image: Tensor) -> Any:
    """The same kinds of features as anyone would write them: scipy's filters on a slice made standard."""
    grey = torch.expm1(image[0]).numpy()
    grey = (grey - grey.mean()) / (grey.std() + 1e-6)
    mean, square = (ndimage.uniform_filter(v, 5) for v in (grey, grey**2))
    looked = [grey, *(ndimage.gaussian_filter(grey, s) for s in (1, 3))]
    looked += [ndimage.gaussian_gradient_magnitude(grey, 1), np.sqrt(np.maximum(0, square - mean**2))]
    return np.stack([*looked, *np.indices(grey.shape)], -1).reshape(-1, len(looked) + 2)


FLOORS: Mapping[str, Any] = {
    "copied mask": Copied(),
    "pixel trees": PixelTrees(points, Growing(60, 3, 0)),
    "pixel trees, plain": PixelTrees(plain_points, plain_trees),
}


def part(support: Examples, third: int) -> Examples:
    one = slice(third, third + 1)
    return Examples(support.image[one], support.label[one], CLASSES, support.patients[one])


def said_of(predictor: Any, image: Tensor) -> Tensor:
    """Probabilities ``(slices, 2, side, side)``."""
    with torch.no_grad():
        said: Tensor = predictor(image)
    return said if isinstance(predictor, PixelTreesPredictor) else said.softmax(1)


def mask(said: Tensor, native: int) -> Tensor:
    return F.interpolate(said, (native, native), mode="bilinear", align_corners=False).argmax(1) > 0


def dice(found: Tensor, truth: Tensor) -> float:
    return 2 * int((found & truth).sum()) / max(1, int(found.sum()) + int(truth.sum()))


@dataclass(frozen=True)
class Adapted:
    """What one support made: a predictor for each third of the range, and one for where nothing is known.

    Args:
        thirds: one for each third, or none where ``whole`` serves there, too.
        whole: for where nothing is known.
        extent: slices that the support's organ has.
    """

    thirds: tuple[Any, ...]
    whole: Any
    extent: int

    @staticmethod
    def by(learner: Any, method: Method, scan: Scan, organ: str) -> Adapted:
        """Adapt to a support; to its slices one by one, too, as the literature does with prototypes."""
        support = scan.support(organ)
        first, after = scan.range(organ)
        whole = learner.adapt(support)
        if not method.apart:
            return Adapted((), whole, after - first)
        shown = support.label.flatten(1).any(1).tolist()  # of a small organ 128 x 128 may show nothing
        thirds = [learner.adapt(part(support, t)) if shown[t] else whole for t in range(3)]
        return Adapted(tuple(thirds), whole, after - first)

    def judge(self, scan: Scan, organ: str) -> dict[str, float]:
        """All scores of one case."""
        truth = scan.label == ORGANS[organ]
        native = truth.shape[-1]
        first, after = scan.range(organ)
        everywhere = said_of(self.whole, scan.image)
        shown = self._shown(scan.image[first:after], everywhere[first:after])
        organ_like = surest(within(surest(everywhere), self.extent))
        return {
            "slices": dice(mask(shown, native), truth[first:after]),
            "volume": dice(mask(everywhere, native), truth),
            "one piece": dice(mask(organ_like, native), truth),
        }

    def _shown(self, image: Tensor, said: Tensor) -> Tensor:
        """What is said of the slices that show the organ; ``said`` is what the whole volume gave there."""
        if self.thirds:
            edges = [round(p * len(image) / 3) for p in range(4)]
            pieces = zip(self.thirds, edges[:-1], edges[1:], strict=True)
            return torch.cat([said_of(p, image[a:b]) for p, a, b in pieces if b > a])
        if isinstance(self.whole, PixelTreesPredictor):  # it looks at each slice by itself
            return said
        return said_of(self.whole, image)


def trained(method: Method, images: Sequence[Tensor], file: Path, args: argparse.Namespace) -> Any:
    """A learner trained on superpixels alone, or what an earlier run left of it."""
    torch.manual_seed(args.seed)
    assert method.learner is not None
    learner = create_learner(method.learner, build(unet(2, 1, base=16)), **method.options)
    assert isinstance(learner, nn.Module)
    if not method.trained:
        return learner
    if file.exists():
        load_model(learner, file)
        return learner
    began = time.process_time()
    source = SuperpixelSource(images, seed=args.seed, size=100)

    def bar(items: Any, description: str, total: int) -> Any:
        return track(items, description=f"{description}: {file.stem}", total=total)

    meta_train(learner, source, Schedule(steps=args.steps, meta_batch=2, rate=1e-3), track=bar)
    save_model(learner, str(file))  # it minds weights that two parts share
    print(f"{file.stem}: {args.steps} steps, {time.process_time() - began:.0f} CPU seconds")
    return learner


def fold_methods(
    fold: int, setting: int, pair: tuple[str, ...], rest: Sequence[Scan], args: argparse.Namespace
) -> dict[str, Any]:
    """Methods by name, ready to adapt."""
    made: dict[str, Any] = {}
    for name in args.methods:
        method = METHODS[name]
        if method.learner is None:
            made[name] = FLOORS[name]
        else:
            held = "all" if setting == 1 else pair[0].split()[-1]
            file = args.out / f"{name}-{setting}-{fold + 1}-{held}-{args.steps}.safetensors"
            made[name] = trained(method, training_slices(rest, setting, pair), file, args)
        if setting == 2 and not method.trained:
            del made[name]  # nothing is trained beforehand, so the settings are the same
    return made


def judge_fold(
    fold: int, setting: int, scans: Sequence[Scan], args: argparse.Namespace, done: dict[str, Any]
) -> None:
    size = len(scans) // FOLDS
    own = list(scans[fold * size : (fold + 1) * size])
    rest = [s for s in scans if all(s is not o for o in own)]
    for pair in PAIRS:
        made = fold_methods(fold, setting, pair, rest, args)
        jobs = [(number, organ, name) for number in args.support for organ in pair for name in made]
        for number, organ, name in track(jobs, description=f"setting {setting}, fold {fold + 1}"):
            support, others = own[number - 1], [s for s in own if s is not own[number - 1]]
            keys = {f"{setting}|{organ}|{s.number}|{name}|{number}": s for s in others}
            if all(key in done for key in keys):
                continue
            adapted = Adapted.by(made[name], METHODS[name], support, organ)
            for key, scan in keys.items():
                done[key] = {"key": key, **adapted.judge(scan, organ)}
                with (args.out / "volumes.jsonl").open("a") as log:
                    log.write(json.dumps(done[key]) + "\n")


def table(done: Mapping[str, Any]) -> dict[str, Any]:
    """Dice by setting, method and score: each organ's mean, and the mean of them with its interval."""
    rows: dict[str, Any] = {}
    for score in SCORES:
        cases: dict[tuple[str, str], list[Case]] = {}
        for key, record in done.items():
            setting, organ, case, method, support = key.split("|")
            cases.setdefault((setting, method), []).append((organ, case, int(support), record[score]))
        for (setting, method), own in sorted(cases.items()):
            of = {o: [c[3] for c in own if c[0] == o] for o in ORGANS}
            each = {o: round(float(np.mean(values)), 4) for o, values in of.items() if values}
            rows.setdefault(setting, {}).setdefault(method, {})[score] = {**over_types(own), "each": each}
    return rows


def show(rows: Mapping[str, Any]) -> None:
    console = Console(width=150)
    for setting, by in rows.items():
        board = Table(title=f"CHAOS T2, one shot, setting {setting}: Dice x 100 (95 %)")
        for column in ("method", "score", "patients", *ORGANS, "mean"):
            board.add_column(column)
        for method, scores in by.items():
            for score, row in scores.items():
                each = [f"{100 * row['each'][o]:.1f}" if o in row["each"] else "n/a" for o in ORGANS]
                mean = f"{100 * row['mean']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
                board.add_row(method, score, str(row["patients"]), *each, mean)
        console.print(board)


def arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("chaos", type=Path)
    parser.add_argument("--out", type=Path, default=Path("/tmp/chaos"), help="weights and scores are kept")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="first fold, setting 1, short training")
    parser.add_argument("--methods", nargs="+", default=list(ALONE), choices=list(METHODS))
    parser.add_argument("--settings", nargs="+", type=int, default=[1, 2], choices=[1, 2])
    parser.add_argument("--folds", nargs="+", type=int, default=list(range(1, FOLDS + 1)))
    parser.add_argument(
        "--support",
        nargs="+",
        type=int,
        default=[1],
        choices=range(1, 5),
        help="which cases are labelled in turn",
    )
    parser.add_argument("--steps", type=int, default=150, help="of two superpixel episodes")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    if args.quick:
        args.folds, args.settings, args.steps = [1], [1], min(args.steps, 20)
    args.out = folder_for(args, DECIDING)
    scans = read(args.chaos)
    file = args.out / "volumes.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    done = {r["key"]: r for r in map(json.loads, lines)}
    for setting in args.settings:
        for fold in args.folds:
            judge_fold(fold - 1, setting, scans, args, done)
            rows = table(done)
            if args.json:
                settings = {k: str(v) for k, v in vars(args).items()}
                args.json.write_text(json.dumps({"settings": settings, "results": rows}, indent=1))
    show(table(done))


if __name__ == "__main__":
    main()
