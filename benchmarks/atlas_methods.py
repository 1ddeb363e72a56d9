"""What the lesion atlas compares, trained for one split and ready to adapt."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from atlas_data import CELL, AtlasSource, Pool, Split, celled
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medmeta.episodes import Episode, Examples, generator_of
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
