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
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from atlas_data import GROUPS, SHOTS, Atlas, Split, read, split
from atlas_methods import SWAPPED, VARIANTS, methods
from kept import folder_for
from over_types import Case, over_types
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from medmeta.episodes import generator_of

DECIDING = ("quick", "seed", "queries", "steps", "rank_steps", "pool", "pseudo")
"""Settings that decide what is trained and judged, and not only how much of it."""


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
