"""What a folder of kept weights and scores was made with, so that other settings do not go on with it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

FILE = "settings.json"


def folder_for(args: argparse.Namespace, deciding: Sequence[str]) -> Path:
    """The folder that a run keeps its work in, made if need be; short runs have one of their own below it.

    Args:
        args: with ``out``, ``quick`` and the settings.
        deciding: names of the settings that decide what weights and scores come out.

    Raises:
        SystemExit: where the folder was made with other settings.
    """
    folder = Path(args.out) / "quick" if args.quick else Path(args.out)
    settings = {name: getattr(args, name) for name in deciding}
    file = folder / FILE
    if not file.exists():  # a new folder, or one of before this file was written, which is taken as it is
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings, indent=1) + "\n")
        return folder
    before = json.loads(file.read_text())
    apart = [
        f"--{name.replace('_', '-')} {before.get(name)}, not {value}"
        for name, value in settings.items()
        if before.get(name) != value
    ]
    if apart:
        raise SystemExit(f"{folder} was made with {'; '.join(apart)}: give that, or another --out.")
    return folder
