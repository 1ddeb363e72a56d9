"""An adapted bundle made ready for others: ONNX beside the weights, results in the card, who made it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from medmeta.clinical import bundle as names
from medmeta.clinical.bundle import BundleError
from medmeta.clinical.card import names_licence
from medmeta.clinical.export import texts, write
from medmeta.clinical.loading import load_bundle
from medmeta.errors import new_folder


def hand_on(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    onnx: bool = False,
    results: str | os.PathLike[str] | None = None,
    authors: str | None = None,
    copyright: str | None = None,
    data_licence: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a bundle anew for those who will run it; verified before, whole or not at all.

    Args:
        bundle: what ``medmeta adapt`` wrote.
        out: the folder to write; refused where it exists.
        onnx: add ``models/model.onnx``; the ONNX runtime gives the same logits to 1e-4 (of the
            largest, where that is over 1), or it is refused.
        results: ``results.json`` of ``medmeta evaluate``, for the card's held-out results; refused where they
            are of another task, learner or types trained on than the bundle's run.
        authors, copyright: for the metadata, in place of what ``adapt`` wrote.
        data_licence: a text file: the licence of the data that the weights were learnt from.

    Returns:
        The folder.

    Raises:
        BundleError: where the bundle is not to be trusted, ``out`` exists, a file cannot be read, or the
            results are another run's.
    """
    folder = new_folder(out, BundleError)
    opened = load_bundle(bundle)
    source = Path(bundle)
    described = dict(opened.about)
    described.update({k: v for k, v in (("authors", authors), ("copyright", copyright)) if v})
    if results is not None:
        own = dict(described["medmeta"])
        own["results"] = _results(Path(results), own)
        described["medmeta"] = own
    data = _text(Path(data_licence or source / names.DATA_LICENCE))
    written = texts(
        described,
        opened.plan,
        (source / names.INFERENCE).read_text(encoding="utf-8"),
        data if data_licence or names_licence(data) else None,  # an earlier version may have said less
    )
    assert isinstance(opened.network, nn.Sequential)
    centre = opened.confidence.centre
    return write(folder, opened.network.eval(), opened.plan, written, centre=centre, onnx=onnx)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(
            "a text file with the data's licence", found="none that can be read", cure="Name another."
        ) from error


def _results(file: Path, own: Mapping[str, Any]) -> dict[str, Any]:
    """Of an evaluation, what a card shows; nothing that names a case.

    Args:
        file: ``results.json``.
        own: what the bundle's metadata say of task and run.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        rows = {
            tumour: {
                shots: {
                    method: {m: _interval(v) for m, v in figures.items()} for method, figures in by.items()
                }
                for shots, by in table.items()
            }
            for tumour, table in found["results"].items()
        }
        shown = {"results": rows, **{k: found[k] for k in ("patients", "episodes", "held_out", "seed")}}
        other = _other_run(found, own)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            "the results.json of medmeta evaluate", found="another file or none", cure="Name that file."
        ) from error
    if other:
        raise BundleError(
            "results of the run that the bundle was adapted from",
            found=other,
            cure="Name the results.json that 'medmeta evaluate' wrote of that run.",
        )
    return shown


def _other_run(found: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """What shows that an evaluation was of another run than the bundle's, for the card calls it that one;
    nothing where all that both say agrees."""
    about = own["about"]
    methods = {m for table in found["results"].values() for figures in table.values() for m in figures}
    trained = [sorted(proof["stages"]["training"]) for proof in found.get("proof", ())]
    types = sorted(about.get("trained_on", ()))
    if isinstance(found["episodes"], Mapping) and own["task"] not in found["episodes"]:
        return f"{', '.join(found['episodes'])}, and the bundle is of {own['task']}"
    if about.get("learner", "") and about["learner"] not in methods:
        return f"none of its learner, {about['learner']}"
    if types and trained and types not in trained:
        return f"one trained on {', '.join(trained[0])}, and the bundle's on {', '.join(types)}"
    return ""


def _interval(value: Mapping[str, float | None]) -> dict[str, float | None]:
    return {part: value[part] for part in ("mean", "low", "high")}
