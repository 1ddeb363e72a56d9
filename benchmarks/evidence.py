"""The lesion atlas by a network that sees evidence and no image: trees' log-odds in, an outline out.

    python benchmarks/evidence.py ../shared/data/images/atlas --group "brain tumours" --json evidence.json

Forests are grown on each support, as the pixel classifier's are; a small network trained on the other types
turns what they say of a query into an outline, beginning from what they say (a prior that is not trained,
after Tian et al. 2020, PFENet). As it never sees the image, it cannot learn what training types look like.
Beside it the forests themselves, on the same images. Many sets are licensed for non-commercial use: so are
the figures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import atlas
import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.ensemble import ExtraTreesClassifier
from torch import Tensor, nn

from medmeta.episodes import Augment, Episode, Examples, generator_of
from medmeta.episodes.augment import apply, draw
from medmeta.learners.body import looks
from medmeta.learners.growing import Growing, Points, sampled
from medmeta.learners.loss import set_loss
from medmeta.learners.refined import pixel_features
from medmeta.networks import build, unet
from medmeta.training.outer import Schedule

VOXELS = 2000
TREES = 30
AXES = 2
MOVED = Augment(gain=0.0, bias=0.0, rotate=25.0, scale=0.25)


def seen(image: Tensor) -> Points:
    """What trees see of one image ``(1, side, side)``: ``(pixels, features)``, the place last."""
    plain = pixel_features(image[None])[0]
    maps = torch.cat([plain[:-AXES], torch.from_numpy(looks(image[None]))[0, 1:], plain[-AXES:]])
    return np.ascontiguousarray(maps.flatten(1).T.numpy(), dtype=np.float32)


@dataclass(frozen=True)
class Forests:
    """Trees with the place and trees without it, and where the support's masks are."""

    with_place: ExtraTreesClassifier
    without: ExtraTreesClassifier
    share: Tensor
    labels: int

    @staticmethod
    def grow(support: Examples, seed: int = 0) -> Forests:
        """Fit both to pixels of the support, half of them of the target where there are so many."""
        generator = np.random.default_rng(seed)
        points, labels = [], []
        for image, label in zip(support.image, support.label, strict=True):
            flat = label.flatten().numpy()
            chosen = sampled(flat, VOXELS, generator)
            points.append(seen(image)[chosen])
            labels.append(flat[chosen])
        x, y = np.concatenate(points), np.concatenate(labels)
        grow = Growing(TREES, 3, seed)
        return Forests(
            grow(x, y), grow(x[:, :-AXES], y), (support.label > 0).float().mean(0), len(support.label)
        )

    def say(self, image: Tensor) -> Tensor:
        """Evidence ``(n, 4, side, side)``: halved log-odds of both, share of masks, number of labels by 5."""
        made = []
        for one in image:
            points = seen(one)
            chance = [
                self.with_place.predict_proba(points)[:, 1],
                self.without.predict_proba(points[:, :-AXES])[:, 1],
            ]
            odds = torch.from_numpy(np.stack(chance)).float().clamp(0.01, 0.99).logit() / 2
            count = torch.full_like(self.share, self.labels / 5)
            made.append(torch.cat([odds.reshape(2, *self.share.shape), self.share[None], count[None]]))
        return torch.stack(made)


class Outliner(nn.Module):
    """Evidence ``(n, 4, side, side)`` to logits ``(n, 2, side, side)``; at first the trees say all."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.network = build(unet(2, 4 * atlas.CELL**2, base=16, feature=16))
        self.last = nn.Conv2d(16, 1, 1)
        nn.init.zeros_(self.last.weight)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, evidence: Tensor) -> Tensor:
        cells = self.last(self.network(F.pixel_unshuffle(evidence, atlas.CELL)))
        drawn = F.interpolate(cells, scale_factor=atlas.CELL, mode="bilinear", align_corners=False)
        score = drawn + 2 * self.gain * evidence[:, :2].mean(1, keepdim=True)
        return torch.cat([torch.zeros_like(score), score], 1)


Made = tuple[Tensor, Tensor]
"""Evidence and label of the queries of one draw."""


def collected(sets: Sequence[atlas.Atlas], draws: int, seed: int) -> list[list[Made]]:
    """Draws of 1 to 5 supports of each set; forests are grown once, so that training is cheap."""
    made: list[list[Made]] = []
    for number, own in enumerate(track(sets, description="growing")):
        rows: list[Made] = []
        for d in range(draws):
            g = generator_of(seed, number, d)
            shot = min(1 + int(torch.randint(5, (1,), generator=g)), len(set(own.patients)) - 1)
            support, query = own.draw(shot, 4, g)
            rows.append((Forests.grow(own.pick(support), d).say(own.image[query]), own.label[query]))
        made.append(rows)
    return made


def fitted(rows: Sequence[Sequence[Made]], schedule: Schedule, seed: int) -> Outliner:
    """Train the network: a set at random, one of its draws, each query moved in its own way."""
    outliner, g = Outliner(seed), torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(outliner.parameters(), lr=schedule.rate)
    for step in track(range(schedule.steps), description="training"):
        adam.zero_grad()
        for group in adam.param_groups:
            group["lr"] = schedule.rate_at(step)
        for _ in range(schedule.meta_batch):
            own = rows[int(torch.randint(len(rows), (1,), generator=g))]
            evidence, label = own[int(torch.randint(len(own), (1,), generator=g))]
            moved = [
                apply(draw(MOVED, AXES, g), Examples(e[None], t[None], ("background", "target")))
                for e, t in zip(evidence, label, strict=True)
            ]
            guess = outliner(torch.cat([m.image for m in moved]))
            loss = set_loss(guess, torch.cat([m.label for m in moved]))
            (loss / schedule.meta_batch).backward()
        nn.utils.clip_grad_norm_(outliner.parameters(), schedule.clip)
        adam.step()
    return outliner.eval()


def judged(own: atlas.Split, outliner: Outliner, args: argparse.Namespace) -> dict[str, Any]:
    """Dice of the network and of the forests on the very same images, mean over types with intervals."""
    cases: dict[tuple[int, str], list[atlas.Case]] = {}
    jobs = [(s, shot, d) for s in own.test for shot in atlas.SHOTS for d in range(args.draws)]
    for s, shot, d in track(jobs, description="judging"):
        if len(set(s.patients)) <= shot:
            continue
        support, query = s.draw(shot, args.queries, generator_of(args.seed, 1, d, shot))
        episode = Episode(s.pick(support), s.pick(query))
        evidence = Forests.grow(episode.support).say(episode.query.image)
        with torch.no_grad():
            found = {
                "network on evidence": outliner(evidence).argmax(1) > 0,
                "mean of the forests": evidence[:, :2].mean(1) > 0,
                "trees with the place": evidence[:, 0] > 0,
                "trees without": evidence[:, 1] > 0,
            }
        for name, masks in found.items():
            for i, mask, truth in zip(query, masks, episode.query.label, strict=True):
                case = (s.name, f"{s.name}/{s.patients[i]}", d, atlas.dice(mask, truth > 0))
                cases.setdefault((shot, name), []).append(case)
    return {f"{shot}|{name}": atlas.over_types(own) for (shot, name), own in cases.items()}


def show(rows: Mapping[str, Any], group: str) -> None:
    board = Table(title=f"{group} held out: Dice x 100 [95 %], mean over types")
    for column in ("labels", "method", "types", "patients", "Dice"):
        board.add_column(column)
    for key, row in rows.items():
        shot, name = key.split("|")
        board.add_row(shot, name, str(row["types"]), str(row["patients"]), atlas.percent(row))
    Console(width=120).print(board)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("atlas", type=Path)
    parser.add_argument("--group", default="brain tumours", choices=list(atlas.GROUPS))
    parser.add_argument("--grown", type=int, default=40, help="draws of supports of each training set")
    parser.add_argument("--steps", type=int, default=1500, help="of four draws each")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--queries", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="few draws and steps: does it run?")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        args.grown, args.steps, args.draws = 3, 100, 2
    began = time.process_time()
    own = atlas.split(atlas.read(args.atlas), args.group, organs=False)
    rows = collected(own.train, args.grown, args.seed)
    outliner = fitted(rows, Schedule(steps=args.steps, meta_batch=4, rate=3e-3), args.seed)
    spent = time.process_time() - began
    found = judged(own, outliner, args)
    show(found, args.group)
    print(f"growing and training: {spent:.0f} CPU seconds")
    if args.json:
        settings = {k: str(v) for k, v in vars(args).items() if k not in ("atlas", "json")}
        args.json.write_text(json.dumps({"settings": settings, "results": found}, indent=1))


if __name__ == "__main__":
    main()
