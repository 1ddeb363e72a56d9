"""A real new tumour type: the lesion atlas, one family of types held out at a time.

    python benchmarks/atlas.py ../shared/data/images/atlas --floors --json floors.json
    python benchmarks/atlas.py ../shared/data/images/atlas --out /tmp/atlas --json atlas.json

Four splits; in each, every set that shares images, organ or lesion family with a tested type is held out of
every stage. All methods learn from the very same supports (one image of each of 1, 3 or 5 patients) and are
judged on the same images of other patients by Dice on the whole image at 128 x 128. Stopped at any time, the
same command goes on: trained weights and finished episodes are kept under --out. Many sets are licensed for
non-commercial use: so are the figures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medmeta.episodes import Augment, Episode, Examples, generator_of
from medmeta.episodes.augment import augment_episode
from medmeta.episodes.selfsupervised import SuperpixelSource
from medmeta.evaluation import Trees, clustered
from medmeta.learners import create_learner, tune_rates
from medmeta.networks import build, unet
from medmeta.training.outer import Schedule, meta_train

SIDE = 128
SHOTS = (1, 3, 5)
GROUPS: Mapping[str, tuple[str, ...]] = {
    "brain tumours": ("brain_glioma", "brain_meningioma", "brain_pituitary", "glioma_T2"),
    "breast": ("breast_",),
    "lung, kidney, liver": ("lung_", "kidney_", "liver_"),
    "stroke, pancreas, prostate": ("brain_stroke", "brain_haemorrhage", "pancreas_", "prostate_"),
}
VALIDATION = ("glioma_T2_fets", "breast_lesion_US_busi", "lung_tumour_CT_msd", "brain_stroke_CT_aisd")
"""Meta-validation types for rates and steps: those of a split that are not held out in it."""


@dataclass(frozen=True)
class Atlas:
    """One set: ``image (n, 1, side, side)``, ``label (n, side, side)``, a patient an image."""

    name: str
    kind: str
    image: Tensor
    label: Tensor
    patients: tuple[str, ...]
    known: bool

    def pick(self, indices: Sequence[int]) -> Examples:
        where = list(indices)
        patients = tuple(f"{self.name}/{self.patients[i]}" for i in where)
        return Examples(self.image[where], self.label[where], ("background", "target"), patients)

    def draw(self, shot: int, query: int, generator: torch.Generator) -> tuple[list[int], list[int]]:
        """One image of each of ``shot`` patients, and up to ``query`` images of others."""
        names = sorted(set(self.patients))
        order = torch.randperm(len(names), generator=generator).tolist()
        of = {n: [i for i, p in enumerate(self.patients) if p == n] for n in names}
        support = []
        for o in order[:shot]:
            own = of[names[o]]
            support.append(own[int(torch.randint(len(own), (1,), generator=generator))])
        rest = [i for o in order[shot:] for i in of[names[o]]]
        chosen = torch.randperm(len(rest), generator=generator).tolist()[:query]
        return support, [rest[c] for c in chosen]


def read(folder: Path) -> list[Atlas]:
    """Read every npz: images averaged to 128 x 128 and standardised, masks taken at every second pixel."""
    sets = []
    for file in sorted(folder.rglob("*.npz")):
        with np.load(file) as data:
            image, mask = data["images"].astype(np.float32), data["masks"] > 0
            patients, meta = [str(p) for p in data["patients"]], json.loads(str(data["meta"]))
        known = "?" not in patients
        if not known:  # each image is taken for a patient of its own, and the table says so
            patients = [p if p != "?" else f"image {i}" for i, p in enumerate(patients)]
        step = image.shape[1] // SIDE
        image = image.reshape(len(image), SIDE, step, SIDE, step).mean((2, 4))
        mean, deviation = image.mean((1, 2), keepdims=True), image.std((1, 2), keepdims=True)
        image = (image - mean) / np.maximum(deviation, 1e-3)
        label = torch.from_numpy(np.ascontiguousarray(mask[:, ::step, ::step])).long()
        keep = label.flatten(1).any(1)
        pixels = torch.from_numpy(image)[:, None]
        kept = tuple(p for p, k in zip(patients, keep.tolist(), strict=True) if k)
        sets.append(Atlas(file.stem, str(meta["kind"]), pixels[keep], label[keep], kept, known))
    return sets


def group_of(name: str) -> str:
    return next(g for g, starts in GROUPS.items() if name.startswith(starts))


@dataclass(frozen=True)
class AtlasSource:
    """Training episodes by number: a training type, moved, recoloured; now and then a superpixel."""

    sets: tuple[Atlas, ...]
    seed: int
    pseudo: SuperpixelSource | None = None
    share: float = 0.0
    query: int = 4

    def __getitem__(self, index: int) -> Episode:
        g = generator_of(self.seed, index)
        if self.pseudo is not None and float(torch.rand((), generator=g)) < self.share:
            return self.pseudo[index]
        own = self.sets[int(torch.randint(len(self.sets), (1,), generator=g))]
        patients = len(set(own.patients))
        shot = min(1 + int(torch.randint(5, (1,), generator=g)), max(1, patients - 1))
        support, query = own.draw(shot, self.query, g)
        moved = augment_episode(Episode(own.pick(support), own.pick(query)), MOVED, g)
        return recoloured(moved, g)


MOVED = Augment(gain=0.3, bias=0.3, rotate=20.0, scale=0.2)


def recoloured(episode: Episode, generator: torch.Generator) -> Episode:
    """Now and then invert the grey scale, or bend it by a gamma: another scanner, another contrast."""
    invert, gamma = torch.rand(2, generator=generator).tolist()
    power = 2 ** (2 * gamma - 1)

    def change(e: Examples) -> Examples:
        low, high = e.image.amin((1, 2, 3), keepdim=True), e.image.amax((1, 2, 3), keepdim=True)
        unit = ((e.image - low) / (high - low).clamp(min=1e-3)).clamp(0, 1)
        bent = unit**power if invert > 0.3 else 1 - unit**power
        image = (bent - bent.mean((1, 2, 3), keepdim=True)) / bent.std((1, 2, 3), keepdim=True).clamp(
            min=1e-3
        )
        return Examples(image, e.label, e.classes, e.patients)

    return Episode(change(episode.support), change(episode.query))


class Copied:
    """The floor: pixels that most support masks have."""

    def adapt(self, support: Examples) -> Callable[[Tensor], Tensor]:
        share = (support.label > 0).float().mean(0)
        vote = torch.stack([0.5 - share, share - 0.5 + 1e-6])
        return lambda image: vote.expand(len(image), *vote.shape)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build(unet(2, 1, base=16))


def trained(
    name: str, options: Mapping[str, Any], source: AtlasSource, steps: int, file: Path, seed: int
) -> nn.Module:
    """Meta-train a learner, or take what an earlier run left."""
    learner = create_learner(name, network(seed), **options)
    assert isinstance(learner, nn.Module)
    if file.exists():
        learner.load_state_dict(load_file(file))
        return learner
    began = time.monotonic()
    schedule = Schedule(steps=steps, meta_batch=2, rate=2e-3)
    bar = lambda items, description, total: track(items, description=f"{file.stem}", total=total)  # noqa: E731
    meta_train(learner, source, schedule, track=bar)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(learner.state_dict(), file, {"seconds": f"{time.monotonic() - began:.0f}", "steps": str(steps)})
    return learner


# --- the methods of one split -------------------------------------------------------------------

RATES, STEPS = (1e-3, 3e-3), (10, 30, 60)
BASE = {"refined-ridge": {"folds": 0, "mirrors": True, "trees": 60, "part": 0.5}}
PLAIN = {"mirrors": False, "trees": 0}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "ours": {},
    "ours, steps by leaving out": {"folds": 2},
    "ours without trees": {"trees": 0},
    "ours without trees, mirrors": PLAIN,
    "ridge head alone": {**PLAIN, "steps": 0},
}
SWAPPED = "pre-trained, adapted our way"


@dataclass
class Split:
    """One family held out: what is trained on, what rates are chosen on, what is tested."""

    group: str
    train: tuple[Atlas, ...]
    validate: tuple[Atlas, ...]
    test: tuple[Atlas, ...]

    @property
    def key(self) -> str:
        return self.group.split(",")[0].replace(" ", "-")


def split(sets: Sequence[Atlas], group: str, organs: bool) -> Split:
    """Hold a family out; the proof is asserted, by name and by pixels."""
    test = tuple(s for s in sets if group_of(s.name) == group)
    rest = [s for s in sets if group_of(s.name) != group]
    train = tuple(s for s in rest if s.name not in VALIDATION)
    validate = tuple(s for s in rest if s.name in VALIDATION)
    seen = {one.numpy().tobytes() for s in rest for one in s.image}
    assert not any(one.numpy().tobytes() in seen for s in test for one in s.image), f"{group} leaks"
    return Split(group, train, validate, tuple(s for s in test if organs or s.kind != "organ"))


def choice_episodes(own: Split, seed: int) -> list[Episode]:
    """One episode of each meta-validation type, of 1 and of 5 shots."""
    made = []
    for number, s in enumerate(own.validate):
        for shot in (1, 5):
            support, query = s.draw(shot, 4, generator_of(seed, 77, number, shot))
            made.append(Episode(s.pick(support), s.pick(query)))
    return made


def refined(own: Split, learner: nn.Module, seed: int, file: Path) -> dict[str, Any]:
    """Choose rate and steps as :func:`tune_rates` does for the baselines, from the same grid and episodes."""
    from medmeta.learners.tuning import score

    if file.exists():
        return json.loads(file.read_text())
    best: dict[tuple[float, int], float] = {}
    for rate in RATES:
        for steps in STEPS:
            options = {"folds": 0, **PLAIN, "rate": rate, "steps": steps}
            one = like(learner, options)
            found = [score(one.adapt(e.support), e.query) for e in choice_episodes(own, seed)]
            best[rate, steps] = float(np.mean(found))
    rate, steps = max(best, key=lambda pair: best[pair])
    chosen = {"rate": rate, "steps": steps}
    file.write_text(json.dumps(chosen))
    return chosen


def like(learner: Any, options: Mapping[str, Any]) -> Any:
    """The same weights under other options."""
    made = create_learner(learner.name, learner.network, **{**learner.options, **options})
    made.load_state_dict(learner.state_dict())  # type: ignore[attr-defined]
    return made


def tuned(own: Split, learner: Any, seed: int, file: Path) -> Any:
    if file.exists():
        chosen = json.loads(file.read_text())
    else:
        found = tune_rates(learner, choice_episodes(own, seed), rates=RATES, steps=STEPS)
        chosen = {"rate": found.options["rate"], "adapt_steps": found.options["adapt_steps"]}
        file.write_text(json.dumps(chosen))
    return like(learner, chosen)


def methods(own: Split, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is compared, ready to adapt."""
    made: dict[str, Any] = {"copied mask": Copied(), "pixel trees": Trees()}
    if args.floors:
        return made
    folder = args.out / own.key
    folder.mkdir(parents=True, exist_ok=True)
    pseudo = SuperpixelSource([i for s in own.train for i in s.image], seed=args.seed, size=60)
    source = AtlasSource(own.train, args.seed, pseudo, args.pseudo)
    scratch = create_learner("finetune-scratch", network(args.seed))
    made["from scratch"] = tuned(own, scratch, args.seed, folder / "scratch.json")
    plain = replace(source, share=0.0)
    ordinary = trained(
        "pretrain-finetune", {}, plain, args.steps, folder / "pretrained.safetensors", args.seed
    )
    made["pre-trained, fine-tuned"] = tuned(own, ordinary, args.seed, folder / "pretrained.json")
    start = {**BASE["refined-ridge"]}
    learner = trained("refined-ridge", start, source, args.steps, folder / "meta.safetensors", args.seed)
    chosen = refined(own, learner, args.seed, folder / "meta.json")
    for name, options in VARIANTS.items():
        if name in args.variants:
            made[name] = like(learner, {**start, **chosen, **options})
    if SWAPPED in args.variants:  # is it the meta-training, or the way of adapting?
        body = create_learner("refined-ridge", ordinary.network, **start)  # type: ignore[attr-defined]
        chosen = refined(own, body, args.seed, folder / "swapped.json")  # type: ignore[arg-type]
        made[SWAPPED] = like(body, {**start, **chosen})
    return made


# --- judging ------------------------------------------------------------------------------------


def dice(found: Tensor, truth: Tensor) -> float:
    both = int((found & truth).sum())
    return 2 * both / max(1, int(found.sum()) + int(truth.sum()))


def judge(own: Split, made: Mapping[str, Any], args: argparse.Namespace, done: dict[str, Any]) -> None:
    """Judge every method on every episode not judged yet; draws outermost: a stopped run is balanced."""
    file = args.out / "episodes.jsonl"
    todo = [
        (draw, s, shot)
        for draw in range(args.draws)
        for s in own.test
        for shot in args.shots
        if len(set(s.patients)) > shot
    ]
    for draw, s, shot in track(todo, description=own.group):
        support, query = s.draw(shot, args.queries, generator_of(args.seed, 1, draw, shot))
        for name, method in made.items():
            key = f"{s.name}|{shot}|{draw}|{name}"
            if key in done:
                continue
            began = time.monotonic()
            predictor = method.adapt(s.pick(support))
            took = time.monotonic() - began
            with torch.no_grad():
                found = predictor(s.image[query]).argmax(1) > 0
            values = [dice(f, t > 0) for f, t in zip(found, s.label[query], strict=True)]
            record = {
                "key": key,
                "patients": [s.patients[i] for i in query],
                "dice": values,
                "seconds": round(took, 2),
            }
            done[key] = record
            with file.open("a") as log:
                log.write(json.dumps(record) + "\n")


def table(sets: Sequence[Atlas], done: Mapping[str, Any]) -> dict[str, Any]:
    """Dice by method and shots: the mean over types with its interval, and each type's own.

    Intervals: bootstrap over patients within each type and over draws, all cases of a patient together.
    """
    names = {s.name: s for s in sets}
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    cases: dict[tuple[str, str], dict[str, list[tuple[str, int, float]]]] = {}
    for key, record in done.items():
        name, shot, draw, method = key.split("|")
        if name in names:
            own = cases.setdefault((shot, method), {}).setdefault(name, [])
            pairs = zip(record["patients"], record["dice"], strict=True)
            own += [(f"{name}/{p}", int(draw), d) for p, d in pairs]
    for (shot, method), types in sorted(cases.items()):
        flat = [(n, *c) for n, own in types.items() for c in own]
        values, kinds = np.array([c[3] for c in flat]), np.array([c[0] for c in flat])

        def mean(i: Any, values: Any = values, kinds: Any = kinds) -> float:
            return float(np.mean([values[i][kinds[i] == k].mean() for k in np.unique(kinds[i])]))

        interval = clustered([c[1] for c in flat], [c[2] for c in flat], mean, resamples=300)
        each = {n: round(float(np.mean([c[2] for c in own])), 4) for n, own in types.items()}
        patients = len({c[1] for c in flat})
        rows.setdefault(shot, {})[method] = {
            **interval.to_json(),
            "types": len(types),
            "patients": patients,
            "each": each,
        }
    return rows


def show(rows: Mapping[str, Any], sets: Sequence[Atlas]) -> None:
    console = Console(width=150)
    unknown = {s.name for s in sets if not s.known}
    for shot, by in rows.items():
        first = next(iter(by.values()))
        counts = f"{first['types']} types, {first['patients']} patients"
        board = Table(title=f"{shot} shot(s): Dice x 100, mean over {counts}")
        for column in ("method", "mean", "95 %"):
            board.add_column(column)
        for method, row in sorted(by.items(), key=lambda m: m[1]["mean"]):
            low, high = row["low"] or 0.0, row["high"] or 0.0
            board.add_row(method, f"{100 * row['mean']:.1f}", f"{100 * low:.1f} to {100 * high:.1f}")
        console.print(board)
    each = Table(title="each type, Dice x 100 at the most shots (* patients unknown: each image its own)")
    shot, by = list(rows.items())[-1]
    for column in (f"{shot} shots", *by):
        each.add_column(column)
    for name in sorted({n for row in by.values() for n in row["each"]}):
        cells = [f"{100 * row['each'][name]:.0f}" if name in row["each"] else "n/a" for row in by.values()]
        each.add_row(name + ("*" if name in unknown else ""), *cells)
    console.print(each)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("atlas", type=Path)
    parser.add_argument(
        "--out", type=Path, default=Path("/tmp/atlas"), help="weights and episodes are kept here"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="two draws, short training: does it run?")
    parser.add_argument("--floors", action="store_true", help="copied mask and pixel trees alone, all sets")
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--variants", nargs="+", default=["ours"], choices=[*VARIANTS, SWAPPED])
    parser.add_argument("--shots", nargs="+", type=int, default=list(SHOTS))
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--queries", type=int, default=6, help="images of other patients judged a draw")
    parser.add_argument(
        "--steps", type=int, default=1200, help="outer steps of two episodes, both trainings alike"
    )
    parser.add_argument("--pseudo", type=float, default=0.2, help="share of superpixel episodes")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    if args.quick:
        args.draws, args.steps, args.queries = min(args.draws, 2), min(args.steps, 60), min(args.queries, 3)
    sets = read(args.atlas)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "episodes.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    done = {r["key"]: r for r in map(json.loads, lines)}
    for group in args.groups:
        own = split(sets, group, organs=args.floors)
        judge(own, methods(own, args), args, done)
        rows = table(sets, done)
        if args.json:
            settings = {k: str(v) for k, v in vars(args).items()}
            args.json.write_text(json.dumps({"settings": settings, "results": rows}, indent=1))
    show(rows, sets)


if __name__ == "__main__":
    main()
