"""Omniglot, the two small sets: few-shot characters of alphabets that training never saw, by any learner.

Trained on the 136 characters of ``small1`` (four rotations of each are four classes), tested on the 106
characters of the three alphabets of ``small2`` that ``small1`` lacks, 20 drawers each. These sets are a tenth
of the usual 1200 training characters: compare within this table only.

    python benchmarks/omniglot.py [--learner NAME …] [--minutes 15] [--quick] [--json FILE] [--out FOLDER]

A training of M minutes takes as many outer steps as M minutes of processor time hold on one thread, counted
anew after every twentieth of them. With ``--out`` it is resumable: stop it anywhere and give the same command
again.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import io
import json
import os
import sys
import tempfile
import warnings
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")  # of MONAI's import

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from budget import train_for  # noqa: E402
from matplotlib.image import imread  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress, track  # noqa: E402
from rich.table import Table  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from medmeta.episodes import Episode, Examples, generator_of  # noqa: E402
from medmeta.learners import Learner, create_learner, learner_names, tune_rates  # noqa: E402
from medmeta.training import Schedule  # noqa: E402

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "omniglot"
SIDE = 28
SETTINGS = ((5, 1), (20, 1), (5, 5), (20, 5))  # ways, shots: the columns of the table
QUERY = 5
VALIDATION = "Early_Aramaic"  # chooses the rates of the honest baselines, which do not train on it
FLOORS = ("raw pixels, nearest prototype", "untrained encoder, nearest prototype")


@dataclass(frozen=True)
class Recipe:
    """How a learner is trained: classes, shots and queries of an episode, episodes a step, rate, options.

    Several ``ways`` and ``shots`` are mixed. A network may be trained ``before``, as another learner and by
    that one's recipe, in half of the minutes; it then stays as it is.
    """

    ways: tuple[int, ...] = (20,)
    shots: tuple[int, ...] = (1, 5)
    query: int = 3
    meta_batch: int = 1
    rate: float = 2e-3
    before: str = ""
    options: dict[str, Any] = field(default_factory=dict)


_ZEROS: dict[str, Any] = {"head": "zeros", "way": None}
"""A head that starts at zero takes any number of classes (a learnt one has the classes of each episode in
another order anyway), so training may take the more classes that teach more."""
# the fewer the classes, the steeper the loss by the head: rates must do for 5 as for 20
_STEPS = Recipe(ways=(5, 20), shots=(1, 1, 5), options={**_ZEROS, "rate": 0.05, "steps": 2})
_BASELINE = Recipe(ways=(40,), shots=(1,), query=2)
RECIPES: dict[str, Recipe] = {
    # more classes in training than in the test: Snell et al. 2017, section 3.1
    "prototypical": Recipe(ways=(60,), shots=(1,), query=3),
    "ridge": Recipe(ways=(40,), shots=(1,)),
    "refined-ridge": Recipe(ways=(20,), shots=(1, 5)),
    "local-prototype": Recipe(ways=(60,), shots=(1,)),
    "matching": Recipe(ways=(40,), shots=(1,)),
    "relation": Recipe(shots=(1,), rate=1e-3),
    "siamese": Recipe(shots=(1,)),
    # trained together from the start, neither memory nor network gets anywhere: each needs the other's slopes
    "mann": Recipe(
        ways=(5, 10, 20), shots=(1,), meta_batch=16, query=2, options={"way": 20}, before="prototypical"
    ),
    "proto-maml": Recipe(
        ways=(5, 20, 20), shots=(1, 1, 1, 5), options={"rate": 0.05, "steps": 2, "adapt_steps": 2}
    ),
    # one step from a head of zeros moves the head alone: the slope of the layers below is zero there
    "maml": Recipe(shots=(1,), options={**_ZEROS, "rate": 0.4, "steps": 1}),
    "fomaml": Recipe(shots=(1,), options={**_ZEROS, "rate": 0.4, "steps": 1}),
    # many short steps: a few long ones went too far on 5 classes where they sufficed for 20
    "anil": Recipe(ways=(5, 20), shots=(1, 1, 5), options={**_ZEROS, "rate": 0.02, "steps": 24}),
    # one step, as Li et al. 2017 have it: after two, rates learnt on 20 classes went too far on 5
    "meta-sgd": Recipe(shots=(1,), options={**_ZEROS, "rate": 0.4, "steps": 1}),
    "reptile": Recipe(
        ways=(5,), shots=(2,), rate=1e-3, options={**_ZEROS, "rate": 0.05, "steps": 5, "adapt_steps": 10}
    ),
    # the implicit gradient does not see the steps, so nothing keeps the features small enough for them: with
    # rates of 0.03 and 0.01 the steps ran away after 750 and 3000 episodes at the outer rate of 2e-3
    "imaml": Recipe(
        ways=(5, 20),
        shots=(1, 1, 5),
        rate=1e-3,
        options={**_ZEROS, "moves": "head", "rate": 0.005, "steps": 24, "proximity": 2.0, "clip": 10.0},
    ),
    "pretrain-linear": _BASELINE,
    "pretrain-finetune": _BASELINE,
}


def characters(archive: Path) -> dict[str, Tensor]:
    """Images of each ``alphabet/character``, ``(drawer, 1, 28, 28)``, ink 1 on 0."""
    found: dict[str, list[Tensor]] = {}
    with zipfile.ZipFile(archive) as zipped:
        for name in sorted(n for n in zipped.namelist() if n.endswith(".png")):
            page = torch.from_numpy(imread(io.BytesIO(zipped.read(name)))).float()
            small = F.adaptive_avg_pool2d(1 - page[None], SIDE)
            found.setdefault("/".join(name.split("/")[1:3]), []).append(small)
    return {name: torch.stack(pages) for name, pages in found.items()}


def moves(n: int, generator: torch.Generator) -> Tensor:
    """Draw maps ``(n, 3, 3)`` that turn, stretch, shear and shift."""
    low = torch.tensor([-0.26, 0.85, 0.85, -0.2, -0.12, -0.12])  # radians, factors, shear, halves of the side
    high = torch.tensor([0.26, 1.15, 1.15, 0.2, 0.12, 0.12])
    drawn = low + (high - low) * torch.rand(n, 6, generator=generator)
    turn, wide, tall, shear, x, y = drawn.unbind(1)
    cos, sin, zero = turn.cos(), turn.sin(), torch.zeros(n)
    rows = [cos * wide, (shear * cos - sin) * tall, x, sin * wide, (shear * sin + cos) * tall, y]
    return torch.stack([*rows, zero, zero, zero + 1], 1).reshape(n, 3, 3)


def variants(n: int, generator: torch.Generator) -> Tensor:
    """Draw maps ``(n, 3, 3)`` that make another character of one: mirrored or not, turned and sheared."""
    maps = moves(n, generator) @ moves(n, generator)
    maps[:, :2, 2] = 0  # where it lies is the image's own matter
    mirrored = torch.rand(n, generator=generator) < 0.5
    maps[mirrored, :, 0] *= -1
    return maps


def warp(image: Tensor, maps: Tensor) -> Tensor:
    """Move each image by a map of its own."""
    grid = F.affine_grid(maps[:, :2], list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, align_corners=False)


@dataclass(frozen=True)
class Characters:
    """Episodes by number: the same number, the same episode.

    Args:
        pages: ``(class, drawer, 1, 28, 28)``.
        names: of the classes.
        ways, shots: one of each is drawn.
        query: images a class.
        moved: whether images are warped (training).
        varied: whether each class is also warped as a whole, by one map for support and query: with some
            hundred classes to train on, a new class helps more than a new image of an old one.
        seed: of everything drawn.
    """

    pages: Tensor
    names: tuple[str, ...]
    ways: tuple[int, ...]
    shots: tuple[int, ...]
    query: int
    moved: bool
    seed: int
    varied: bool = False

    def draw(self, index: int) -> tuple[Tensor, Tensor, int, torch.Generator]:
        """Classes ``(way)``, their drawers in random order ``(way, drawer)``, the shots."""
        generator = generator_of(self.seed, index)
        way, shot = (
            options[int(torch.randint(len(options), (), generator=generator))]
            for options in (self.ways, self.shots)
        )
        classes = torch.randperm(len(self.names), generator=generator)[:way]
        drawers = torch.rand(way, self.pages.shape[1], generator=generator).argsort(1)
        return classes, drawers, shot, generator

    def __getitem__(self, index: int) -> Episode:
        classes, drawers, shot, generator = self.draw(index)
        names = tuple(self.names[int(c)] for c in classes)
        variant = (
            variants(len(classes), generator) if self.varied else torch.eye(3).expand(len(classes), 3, 3)
        )

        def examples(columns: Tensor) -> Examples:
            image = self.pages[classes[:, None], columns].flatten(0, 1)
            label = torch.arange(len(classes)).repeat_interleave(columns.shape[1])
            if self.moved:
                image = warp(image, variant[label] @ moves(len(image), generator))
            return Examples(image, label, names)

        return Episode(examples(drawers[:, :shot]), examples(drawers[:, shot : shot + self.query]))


class AsItIs(nn.Module):
    """Numbers as they are for features; learners want a weight of a network, to know its precision."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        """One row an image."""
        return image.flatten(1)


def backbone(seed: int = 0) -> nn.Module:
    """Conv-4 with 64 channels (Vinyals et al. 2016), group norm in the place of batch norm: (n, 64).

    It pools before the norm, which then costs a quarter; the last layer has too few voxels left for that.
    """
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for channels in (1, 64, 64):
        layers += [nn.Conv2d(channels, 64, 3, padding=1), nn.MaxPool2d(2), nn.GroupNorm(8, 64), nn.ReLU()]
    layers += [nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten()).to(memory_format=torch.channels_last)


def rotated(pages: dict[str, Tensor]) -> tuple[Tensor, tuple[str, ...]]:
    """Every rotation of a character as a class of its own."""
    names = tuple(f"{name}/{90 * turn}" for name in pages for turn in range(4))
    turned = [torch.rot90(page, turn, (2, 3)) for page in pages.values() for turn in range(4)]
    return torch.stack(turned), names


def trained(name: str, minutes: float, data: Data, folder: Path, show: bool) -> Learner:
    """Create a learner and meta-train it for some minutes of one processor; resumes what is in its folder."""
    recipe = RECIPES.get(name, _STEPS)
    pages, names = data.without_validation if name.startswith("pretrain") else data.train
    options = dict(recipe.options)
    if name.startswith("pretrain"):
        options["classes"] = names
    network = backbone()
    if recipe.before:
        minutes /= 2
        network = trained(recipe.before, minutes, data, folder / "before", show).network.requires_grad_(False)
    learner = create_learner(name, network, **options)
    if name == "finetune-scratch" or not minutes:
        return learner
    varied = not name.startswith("pretrain")  # whose classes have a row each, whatever the episode
    source = Characters(
        pages, names, recipe.ways, recipe.shots, recipe.query, moved=True, seed=1, varied=varied
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe)))

    def schedule(steps: int) -> Schedule:
        return Schedule(steps, recipe.meta_batch, recipe.rate, save_every=steps)

    with Progress(disable=not show) as bars:
        train_for(learner, source, schedule, minutes, folder, bars)
    return learner


def keep_memory() -> None:
    """Have glibc keep freed memory: pages given back and asked for again took a fifth of a step."""
    options = {-4: 0, -1: 2**31 - 1, -2: 2**28}  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    for option, value in options.items() if mallopt else ():
        mallopt(option, value)


def accuracies(learner: Learner, source: Characters, episodes: int, show: bool, what: str) -> Tensor:
    """Share of the queries told rightly in each test episode, ``(episodes)``."""
    right = torch.zeros(episodes)
    for i in track(range(episodes), what, disable=not show):
        episode = source[i]
        with torch.no_grad():
            guess = learner.adapt(episode.support)(episode.query.image).argmax(1)
        right[i] = (guess == episode.query.label).float().mean()
    return right


def judged(learner: Learner, data: Data, way: int, shot: int, episodes: int, show: bool) -> dict[str, float]:
    """Accuracy (%) and its 95 % interval over episodes."""
    pages, names = data.test
    if learner.name == "prototypical" and isinstance(learner, nn.Module):
        # its network is the same in every episode, so each image goes through it once
        learner = copy.deepcopy(learner)
        with torch.no_grad():
            pages = torch.stack([learner.network.eval()(page) for page in pages])
        learner.network = AsItIs()
    source = Characters(pages, names, (way,), (shot,), QUERY, moved=False, seed=2)
    right = 100 * accuracies(learner, source, episodes, show, f"{learner.name}: {way}-way {shot}-shot")
    half = float(1.96 * right.std() / episodes**0.5)
    mean = float(right.mean())
    return {"mean": mean, "low": mean - half, "high": mean + half}


@dataclass(frozen=True)
class Data:
    """Classes to train on, those without the validation alphabet, that alphabet's, and those of the test."""

    train: tuple[Tensor, tuple[str, ...]]
    without_validation: tuple[Tensor, tuple[str, ...]]
    validation: tuple[Tensor, tuple[str, ...]]
    test: tuple[Tensor, tuple[str, ...]]


def read(folder: Path) -> Data:
    """Read both archives and leave out of the test every alphabet that training saw."""
    one, two = (characters(folder / f"images_background_small{i}.zip") for i in (1, 2))
    seen = {name.split("/")[0] for name in one}
    new = {name: pages for name, pages in two.items() if name.split("/")[0] not in seen}
    kept = {n: p for n, p in one.items() if not n.startswith(VALIDATION)}
    checked = {n: p for n, p in one.items() if n.startswith(VALIDATION)}
    return Data(rotated(one), rotated(kept), rotated(checked), (torch.stack(list(new.values())), tuple(new)))


def row(name: str, data: Data, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All settings of one learner, or of a floor."""
    show, spent = sys.stderr.isatty(), 0.0
    scores: dict[str, dict[str, float]] = {}
    if name in FLOORS:
        network = AsItIs() if name == FLOORS[0] else backbone()
        made = create_learner("prototypical", network)
    else:
        made = trained(name, arguments.minutes, data, work / name, show)
        spent = sum(json.loads(plan.read_text())["spent"] for plan in (work / name).rglob("plan.json")) / 60
    for way, shot in arguments.settings:
        learner = made
        if name.startswith(("pretrain", "finetune")):
            tasks = Characters(*data.validation, (way,), (shot,), QUERY, moved=False, seed=3)
            learner = tune_rates(learner, [tasks[i] for i in range(2 if arguments.quick else 8)])
        scores[f"{way}-way {shot}-shot"] = judged(learner, data, way, shot, arguments.episodes, show)
    return {"scores": scores, "minutes": spent}


def table(rows: dict[str, dict[str, Any]], episodes: int) -> Table:
    """The results, with half the width of each interval."""
    shown = Table(title=f"Omniglot small1 to small2: accuracy (%), {episodes} episodes, 95 % intervals")
    shown.add_column("learner")
    for way, shot in SETTINGS:
        shown.add_column(f"{way}w{shot}s", justify="right")
    shown.add_column("training, CPU min", justify="right")
    for name, found in rows.items():
        cells = [
            f"{s['mean']:.1f} ± {(s['high'] - s['low']) / 2:.1f}" if s else "not run"
            for s in (found["scores"].get(f"{way}-way {shot}-shot") for way, shot in SETTINGS)
        ]
        shown.add_row(name, *cells, f"{found['minutes']:.1f}")
    return shown


def setting(text: str) -> tuple[int, int]:
    """Ways and shots of ``5w1s``."""
    way, shot = text.rstrip("s").split("w")
    return int(way), int(shot)


def main() -> None:
    """Train and test the learners asked for, beside the floors."""
    names = learner_names("classification")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--learner", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--minutes", type=float, default=15.0, help="processor minutes of a training")
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument(
        "--settings",
        nargs="+",
        type=setting,
        default=SETTINGS,
        metavar="5w1s",
        help="columns of the table to fill",
    )
    parser.add_argument("--quick", action="store_true", help="seconds of training, 20 episodes: does it run?")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, help="keeps trainings and results, so that it can go on")
    parser.add_argument("--data", type=Path, default=DATA)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    keep_memory()
    if arguments.quick:
        arguments.minutes, arguments.episodes = min(arguments.minutes, 0.05), min(arguments.episodes, 20)
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.out or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        data = read(arguments.data)
        console = Console(width=110)
        console.print(
            f"{len(data.train[1])} classes to train on (4 rotations each), {len(data.test[1])} characters of "
            f"the test; {arguments.minutes:g} processor minutes a learner, 1 thread"
        )
        rows: dict[str, dict[str, Any]] = {}
        for name in (*FLOORS, *arguments.learner):
            kept = work / f"{name.split(',')[0]} {arguments.episodes}.json"
            if kept.is_file():
                rows[name] = json.loads(kept.read_text())
                if all(f"{way}-way {shot}-shot" in rows[name]["scores"] for way, shot in arguments.settings):
                    continue
            rows[name] = row(name, data, arguments, work)
            kept.write_text(json.dumps(rows[name]))
            console.print(name, {k: round(v["mean"], 1) for k, v in rows[name]["scores"].items()})
        console.print(table(rows, arguments.episodes))
        if arguments.json:
            about = {"minutes": arguments.minutes, "episodes": arguments.episodes, "seed": 0}
            arguments.json.write_text(json.dumps({"results": rows, **about}, indent=1))


if __name__ == "__main__":
    main()
