"""A real new tumour type: the lesion atlas, one family of types held out at a time.

    python benchmarks/atlas.py ../shared/data/images/atlas --floors --json floors.json
    python benchmarks/atlas.py ../shared/data/images/atlas --out /tmp/atlas --json atlas.json

Four splits; in each, every set that shares images, organ or lesion family with a tested type is held out of
every stage. All methods learn from the very same supports (one image of each of 1, 3 or 5 patients) and are
judged on the same images of other patients by Dice on the whole image at 128 x 128. Stopped at any time, the
same command goes on: trained weights and finished episodes are kept under --out, with the settings that made
them, and a run with others is refused there. Many sets are licensed for non-commercial use: so are the
figures.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kept import folder_for
from over_types import Case, over_types
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medmeta.episodes import Augment, Episode, Examples, generator_of
from medmeta.episodes.augment import augment_episode
from medmeta.episodes.selfsupervised import SuperpixelSource
from medmeta.evaluation import Trees
from medmeta.learners import create_learner, tune_rates
from medmeta.learners.evidence import learn
from medmeta.learners.gradient import GradientLearner
from medmeta.learners.one_organ import surest
from medmeta.learners.regions import sources
from medmeta.learners.tuning import score
from medmeta.networks import build, unet
from medmeta.training.outer import Progress, Schedule, meta_train

SIDE = 128
DECIDING = ("quick", "seed", "queries", "steps", "rank_steps", "pool", "pseudo")
"""Settings that decide what is trained and judged, and not only how much of it."""
SHOTS = (1, 3, 5)
GROUPS: Mapping[str, tuple[str, ...]] = {
    "brain tumours": ("brain_glioma", "brain_meningioma", "brain_pituitary", "glioma_T2"),
    "breast": ("breast_",),
    "lung, kidney, liver": ("lung_", "kidney_", "liver_"),
    "stroke, pancreas, prostate": ("brain_stroke", "brain_haemorrhage", "pancreas_", "prostate_"),
}
VALIDATION = ("brain_haemorrhage", "lung_", "kidney_", "pancreas_")
"""Families on whose lesions rates and steps are chosen by a network that never saw them, where not held out.
Once they are chosen, every method is trained on these families, too."""
NEIGHBOURS = 10
"""Where patients are unknown, images numbered no further apart than this are taken for one patient's: the
sources list a patient's slices one after the other, and about a dozen of them."""


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
            ids = [str(i) for i in data["ids"]]
        known = "?" not in patients
        if not known:  # and the table says so
            patients = neighbours(ids)
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


def neighbours(ids: Sequence[str]) -> list[str]:
    """A name for each image's patient where only the numbers of images are known.

    >>> neighbours(["a_3", "a_40", "a_12", "b_4"])
    ['a_3', 'a_40', 'a_3', 'b_4']
    """
    parts = [re.fullmatch(r"(.*?)(\d+)", i) for i in ids]
    numbers = [(m[1], int(m[2])) if m else (i, 0) for m, i in zip(parts, ids, strict=True)]
    names, last = [""] * len(ids), ("", -NEIGHBOURS - 1)
    before = ""
    for i in sorted(range(len(ids)), key=lambda i: numbers[i]):
        near = numbers[i][0] == last[0] and numbers[i][1] - last[1] <= NEIGHBOURS
        names[i] = before = before if near else ids[i]
        last = numbers[i]
    return names


def group_of(name: str) -> str:
    return next(g for g, starts in GROUPS.items() if name.startswith(starts))


@dataclass(frozen=True)
class AtlasSource:
    """Training episodes by number: a training type, moved, recoloured; now and then a superpixel."""

    sets: tuple[Atlas, ...]
    seed: int
    pseudo: SuperpixelSource | None = None
    share: float = 0.0
    query: int = 2

    def __getitem__(self, index: int) -> Episode:
        g = generator_of(self.seed, index)
        if self.pseudo is not None and float(torch.rand((), generator=g)) < self.share:
            made = self.pseudo[index]
            made = recoloured(made, g)
            return Episode(celled(made.support), celled(made.query))
        own = self.sets[int(torch.randint(len(self.sets), (1,), generator=g))]
        patients = len(set(own.patients))
        shot = min(1 + int(torch.randint(5, (1,), generator=g)), max(1, patients - 1))
        support, query = own.draw(shot, self.query, g)
        plain = Episode(own.pick(support), own.pick(query))
        moved = augment_episode(plain, MOVED, g)
        if not bool((moved.support.label > 0).any()):  # moved out of sight, or between two pixels
            moved = plain
        moved = recoloured(moved, g)
        return Episode(celled(moved.support), celled(moved.query))


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


@dataclass(frozen=True)
class Pool:
    """A few hundred training episodes that come again and again, for a learner that remembers them.

    Those of a set hang on its name alone, so that all splits share what is remembered.
    """

    sets: tuple[Atlas, ...]
    seed: int
    each: int
    query: int = 4

    def __getitem__(self, index: int) -> Episode:
        number = index % (self.each * len(SHOTS) * len(self.sets))
        own, turn = self.sets[number % len(self.sets)], number // len(self.sets)
        shot = min(SHOTS[turn % len(SHOTS)], len(set(own.patients)) - 1)
        generator = generator_of(self.seed, 500, zlib.crc32(own.name.encode()), turn)
        support, query = own.draw(shot, self.query, generator)
        return Episode(own.pick(support), own.pick(query))


class Copied:
    """The floor: pixels that most support masks have."""

    def adapt(self, support: Examples) -> Callable[[Tensor], Tensor]:
        share = (support.label > 0).float().mean(0)
        vote = torch.stack([0.5 - share, share - 0.5 + 1e-6])
        return lambda image: vote.expand(len(image), *vote.shape)


@dataclass(frozen=True)
class Spoken:
    """The evidence that "ours" begins with, and no ranker.

    Args:
        told: makes log-odds of the target ``(side, side)`` an answer ``(2, side, side)``.
    """

    told: Callable[[Any], Tensor]

    def adapt(self, support: Examples) -> Callable[[Tensor], Tensor]:
        found = learn(list(support.image), list((support.label > 0).numpy()), 0)
        assert found is not None, "a support shows the target"
        return lambda image: torch.stack([self.told(odds) for odds in found(image)])


def placed(odds: Any) -> Tensor:
    """A stronger floor: trees that know the place, too, and 20 more looks."""
    said = torch.from_numpy(odds[0])
    return torch.stack([-said, said])


def surest_piece(odds: Any) -> Tensor:
    """The piece for which the mean of all speaks most."""
    said = torch.from_numpy(sources(odds)[1])
    return surest(torch.stack([-said, said]).mul(2).softmax(0)[None])[0]


CELL = 2
"""Networks see cells of 2 x 2 pixels, four channels each, at a quarter of the cost. Outlines drawn on cells
reach Dice 90 in the mean over the lesion types, and 55 where lesions are smallest (brain haemorrhage)."""


def celled(examples: Examples) -> Examples:
    """Pixels as channels of cells; a cell is target where half of it is, or any where no cell would be."""
    share = nn.functional.avg_pool2d((examples.label[:, None] > 0).float(), CELL)[:, 0]
    label = torch.where((share >= 0.5).flatten(1).any(1)[:, None, None], share >= 0.5, share > 0)
    image = nn.functional.pixel_unshuffle(examples.image, CELL)
    return Examples(image, label.long(), examples.classes, examples.patients)


@dataclass(frozen=True)
class OnCells:
    """A learner that works on cells, its answer interpolated to pixels."""

    learner: Any

    def adapt(self, support: Examples) -> Callable[[Tensor], Tensor]:
        own = self.learner.adapt(celled(support))

        def predictor(image: Tensor) -> Tensor:
            found = own(nn.functional.pixel_unshuffle(image, CELL))
            return nn.functional.interpolate(found, scale_factor=CELL, mode="bilinear")

        return predictor


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build(unet(2, CELL**2, base=16, feature=16))


class Kept:
    """What stopping must not lose: weights, optimiser and step, written under another name first."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def save(self, learner: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
        state = {"learner": learner.state_dict(), "adam": optimiser.state_dict(), "step": progress.step}
        torch.save(state, self.file.with_suffix(".new"))
        self.file.with_suffix(".new").replace(self.file)

    def save_best(self, learner: nn.Module) -> None: ...

    def note(self, record: dict[str, Any]) -> None: ...


def trained(learner: Any, source: AtlasSource | Pool, steps: int, file: Path) -> Any:
    """Train a learner, go on with what an earlier run left, or take what it finished."""
    if file.exists():
        learner.load_state_dict(load_file(file))
        return learner
    began, partial = time.process_time(), file.with_suffix(".pt")
    optimiser, progress = torch.optim.Adam(learner.parameters(), lr=RATE), Progress()
    if partial.exists():
        state = torch.load(partial, weights_only=True)
        learner.load_state_dict(state["learner"])
        optimiser.load_state_dict(state["adam"])
        progress.step = state["step"]
    schedule = Schedule(steps=steps, meta_batch=2, rate=RATE)
    meta_train(
        learner,
        source,
        schedule,
        keeper=Kept(partial),
        optimiser=optimiser,
        progress=progress,
        track=lambda items, description, total: track(items, description=str(file.stem), total=total),
    )
    spent = {"cpu_seconds": f"{time.process_time() - began:.0f}", "steps": str(steps)}
    save_file(learner.state_dict(), file, spent)
    partial.unlink(missing_ok=True)
    return learner


# --- the methods of one split -------------------------------------------------------------------

DESCRIBED: dict[bytes, Any] = {}
"""What "ours" remembers of training episodes, shared by the splits: nothing of it is learnt."""
RATE = 3e-3
"""Of Adam in all trainings."""
RATES, STEPS = (2e-3,), (0, 10, 30, 100)
BASE = {"folds": 0, "views": 2, "mirrors": True, "trees": 30, "part": 0.5}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "refined ridge": {},
    "refined ridge, steps by leaving out": {"folds": 2},
    "refined ridge without trees": {"trees": 0},
    "refined ridge without trees, mirrors": {"mirrors": False, "trees": 0},
    "ridge head alone": {"mirrors": False, "trees": 0, "steps": 0},
}
SWAPPED = "pre-trained, refined"


@dataclass
class Split:
    """One family held out: what is trained on while rates are chosen, on what, what then, what is tested."""

    group: str
    train: tuple[Atlas, ...]
    validate: tuple[Atlas, ...]
    every: tuple[Atlas, ...]
    test: tuple[Atlas, ...]

    @property
    def key(self) -> str:
        return self.group.split(",")[0].replace(" ", "-")


def split(sets: Sequence[Atlas], group: str, organs: bool) -> Split:
    """Hold a family out; the proof is asserted, by name and by pixels."""
    test = tuple(s for s in sets if group_of(s.name) == group)
    rest = [s for s in sets if group_of(s.name) != group]
    train = tuple(s for s in rest if not s.name.startswith(VALIDATION))
    validate = tuple(s for s in rest if s.name.startswith(VALIDATION) and s.kind != "organ")
    seen = {one.numpy().tobytes() for s in rest for one in s.image}
    assert not any(one.numpy().tobytes() in seen for s in test for one in s.image), f"{group} leaks"
    return Split(group, train, validate, tuple(rest), tuple(s for s in test if organs or s.kind != "organ"))


@dataclass(frozen=True)
class ByShot:
    """A method with its rate and steps chosen for one shot, and for several."""

    one: Any
    several: Any

    def adapt(self, support: Examples) -> Callable[[Tensor], Tensor]:
        return (self.one if len(support.image) == 1 else self.several).adapt(support)


def like(learner: Any, options: Mapping[str, Any]) -> Any:
    """The same weights under other options."""
    made: Any = create_learner(learner.name, learner.network, **{**learner.options, **options})
    made.load_state_dict(learner.state_dict())
    return made


def chosen(own: Split, learner: Any, seed: int, file: Path) -> dict[str, dict[str, Any]]:
    """Rate and steps for 1 and for 5 shots, from one grid on one set of episodes for all methods."""
    if file.exists():
        return dict(json.loads(file.read_text()))
    made = {}
    for shot in (1, 5):
        episodes = []
        for number, s in enumerate(v for v in own.validate if len(set(v.patients)) > shot):
            support, query = s.draw(shot, 4, generator_of(seed, 77, number, shot))
            episodes.append(Episode(celled(s.pick(support)), celled(s.pick(query))))
        if isinstance(learner, GradientLearner):
            found = tune_rates(learner, episodes, rates=RATES, steps=STEPS).options
            made[str(shot)] = {"rate": found["rate"], "adapt_steps": found["adapt_steps"]}
            continue
        scores = {
            (rate, steps): np.mean(
                [
                    score(like(learner, {**PLAIN, "rate": rate, "steps": steps}).adapt(e.support), e.query)
                    for e in episodes
                ]
            )
            for rate in RATES
            for steps in STEPS
        }
        rate, steps = max(scores, key=lambda pair: scores[pair])
        made[str(shot)] = {"rate": rate, "steps": steps}
    file.write_text(json.dumps(made))
    return made


PLAIN = {"folds": 0, "mirrors": False, "trees": 0}


def by_shot(learner: Any, found: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> ByShot:
    one, several = (OnCells(like(learner, {**found[s], **options})) for s in ("1", "5"))
    return ByShot(one, several)


def methods(own: Split, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is compared, ready to adapt."""
    made: dict[str, Any] = {
        "copied mask": Copied(),
        "pixel trees": Trees(),
        "pixel trees with more looks and the place": Spoken(placed),
        "surest piece, no ranker": Spoken(surest_piece),
    }
    if args.floors:
        return made
    folder, seed = args.out / own.key, args.seed
    folder.mkdir(parents=True, exist_ok=True)
    ours: Any = create_learner("ranked-regions", network(seed), seed=seed)
    ours.described = DESCRIBED
    made["ours"] = trained(
        ours, Pool(own.every, seed, args.pool), args.rank_steps, folder / "ranked.safetensors"
    )
    scratch: Any = create_learner("finetune-scratch", network(seed))
    made["from scratch"] = by_shot(scratch, chosen(own, scratch, seed, folder / "scratch.json"), {})
    partly, ordinary = (
        trained(
            create_learner("pretrain-finetune", network(seed)),
            AtlasSource(sets, seed),
            args.steps,
            folder / f"pretrained_{on}.safetensors",
        )
        for on, sets in (("train", own.train), ("every", own.every))
    )
    found = chosen(own, partly, seed, folder / "finetuned.json")
    made["pre-trained, fine-tuned"] = by_shot(ordinary, found, {})
    fixed = {shot: {"rate": RATES[0], "adapt_steps": STEPS[-1]} for shot in found}
    made[f"pre-trained, fine-tuned, {STEPS[-1]} steps always"] = by_shot(ordinary, fixed, {})
    made.update(refined(own, partly, args, folder))
    return made


def refined(own: Split, ordinary: Any, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """``refined-ridge`` in the variants asked for, meta-trained as long as the ordinary network."""
    made: dict[str, Any] = {}
    if set(args.variants) & set(VARIANTS):
        pseudo = SuperpixelSource([i for s in own.train for i in s.image], seed=args.seed, size=60)
        source = AtlasSource(own.train, args.seed, pseudo, args.pseudo)
        meta = create_learner("refined-ridge", network(args.seed), **BASE)
        meta = trained(meta, source, args.steps, folder / "meta.safetensors")
        found = chosen(own, meta, args.seed, folder / "meta.json")
        made = {name: by_shot(meta, found, VARIANTS[name]) for name in VARIANTS if name in args.variants}
    if SWAPPED in args.variants:  # is it the meta-training, or the way of adapting?
        body = create_learner("refined-ridge", ordinary.network, **BASE)
        made[SWAPPED] = by_shot(body, chosen(own, body, args.seed, folder / "swapped.json"), {})
    return made


# --- judging ------------------------------------------------------------------------------------


def dice(found: Tensor, truth: Tensor) -> float:
    both = int((found & truth).sum())
    return 2 * both / max(1, int(found.sum()) + int(truth.sum()))


def judge(
    own: Split, made: Mapping[str, Any], args: argparse.Namespace, draw: int, done: dict[str, Any]
) -> None:
    """Judge every method on every episode of one draw that is not judged yet."""
    file = args.out / "episodes.jsonl"
    for s, shot in ((s, shot) for s in own.test for shot in args.shots if len(set(s.patients)) > shot):
        support, query = s.draw(shot, args.queries, generator_of(args.seed, 1, draw, shot))
        for name, method in made.items():
            key = f"{s.name}|{shot}|{draw}|{name}"
            if key in done:
                continue
            began = time.process_time()
            with torch.no_grad():
                found = method.adapt(s.pick(support))(s.image[query]).argmax(1) > 0
            values = [dice(f, t > 0) for f, t in zip(found, s.label[query], strict=True)]
            done[key] = {
                "key": key,
                "patients": [s.patients[i] for i in query],
                "dice": values,
                "cpu_seconds": round(time.process_time() - began, 2),
            }
            with file.open("a") as log:
                log.write(json.dumps(done[key]) + "\n")


def table(done: Mapping[str, Any], names: Sequence[str], ours: str) -> dict[str, Any]:
    """Dice by shots and method on the episodes that all methods were judged on, and how far ours is ahead."""
    keys = [k.split("|") for k in done]
    all_of = {m for *_, m in keys}
    whole = [
        (n, s, d)
        for n, s, d in sorted({(n, s, d) for n, s, d, _ in keys})
        if n in names and all(f"{n}|{s}|{d}|{m}" in done for m in all_of)
    ]
    rows: dict[str, Any] = {}
    for shot in sorted({s for _, s, _ in whole}):
        cases: dict[str, list[Case]] = {m: [] for m in sorted(all_of)}
        for (n, s, d), m in ((e, m) for e in whole for m in cases if e[1] == shot):
            record = done[f"{n}|{s}|{d}|{m}"]
            pairs = zip(record["patients"], record["dice"], strict=True)
            cases[m] += [(n, f"{n}/{p}", int(d), v) for p, v in pairs]
        rows[shot] = {}
        for m, own in cases.items():
            kinds = sorted({c[0] for c in own})
            each = {k: round(float(np.mean([c[3] for c in own if c[0] == k])), 4) for k in kinds}
            rows[shot][m] = {**over_types(own), "draws": len({c[2] for c in own}), "each": each}
            if ours in cases and m != ours:
                apart = [(*a[:3], a[3] - b[3]) for a, b in zip(cases[ours], own, strict=True)]
                ahead = over_types([*apart])
                rows[shot][m]["ours_ahead"] = {k: ahead[k] for k in ("mean", "low", "high")}
    return rows


def percent(row: Mapping[str, Any]) -> str:
    ends = [f"{100 * row[e]:.1f}" if row[e] is not None else "n/a" for e in ("mean", "low", "high")]
    return f"{ends[0]} [{ends[1]} to {ends[2]}]"


def show(rows: Mapping[str, Any], sets: Sequence[Atlas]) -> None:
    console = Console(width=170)
    unknown = {s.name for s in sets if not s.known}
    for shot, by in rows.items():
        first = next(iter(by.values()))
        counts = f"{first['types']} types, {first['patients']} patients, {first['draws']} draws"
        board = Table(title=f"{shot} shot(s): Dice x 100, mean over {counts}")
        for column in ("method", "Dice [95 %]", "ours ahead by"):
            board.add_column(column)
        for method, row in sorted(by.items(), key=lambda m: m[1]["mean"]):
            board.add_row(method, percent(row), percent(row["ours_ahead"]) if "ours_ahead" in row else "")
        console.print(board)
        each = Table(title="each type (* patients unknown: neighbouring numbers are taken for one)")
        for column in (f"{shot} shot(s)", *by):
            each.add_column(column)
        for name in sorted(first["each"]):
            cells = [f"{100 * row['each'][name]:.0f}" for row in by.values()]
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
    parser.add_argument("--variants", nargs="+", default=[], choices=[*VARIANTS, SWAPPED])
    parser.add_argument("--shots", nargs="+", type=int, default=list(SHOTS))
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--queries", type=int, default=4, help="images of other patients judged a draw")
    parser.add_argument("--steps", type=int, default=1000, help="of two episodes, trainings of networks")
    parser.add_argument("--rank-steps", type=int, default=1500, help="of two episodes, training of ours")
    parser.add_argument(
        "--pool", type=int, default=6, help="training episodes of a type and number of labels"
    )
    parser.add_argument("--pseudo", type=float, default=0.2, help="share of superpixel episodes")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    if args.quick:
        args.draws, args.steps, args.queries = min(args.draws, 2), min(args.steps, 60), min(args.queries, 3)
        args.pool, args.rank_steps = 1, 200
    args.out = folder_for(args, DECIDING)
    sets = read(args.atlas)
    file = args.out / "episodes.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    done = {r["key"]: r for r in map(json.loads, lines)}
    ready = []
    for group in args.groups:
        own = split(sets, group, organs=args.floors)
        ready.append((own, methods(own, args)))
    names = [s.name for own, _ in ready for s in own.test]
    for draw in track(range(args.draws), description="draws"):  # outermost: a stopped run is balanced
        for own, made in ready:
            judge(own, made, args, draw, done)
        rows = table({k: r for k, r in done.items() if k.split("|")[3] in made}, names, "ours")
        if args.json:
            settings = {k: str(v) for k, v in vars(args).items() if k not in ("atlas", "out", "json")}
            args.json.write_text(json.dumps({"settings": settings, "results": rows}, indent=1))
    show(rows, sets)


if __name__ == "__main__":
    main()
