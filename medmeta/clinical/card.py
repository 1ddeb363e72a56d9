"""The model card and the licences that travel with a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmeta.clinical.bundle import ENDINGS, EXPRESSIONS
from medmeta.volumes import Plan

_TEMPLATES = Path(__file__).parent / "templates"

HOLDS = {
    ("in_context_predictor", "segmentation"): (
        "of each support image its mask at a lower resolution, and the network's features at the same points"
    ),
    ("in_context_predictor", "classification"): (
        "of each support image the network's features, and its class"
    ),
    ("local_prototype_predictor", "segmentation"): (
        "the network's features of places in the support, and the share of each class there"
    ),
    ("local_prototype_predictor", "classification"): (
        "the network's features of the support images, and their classes"
    ),
    ("memory_predictor", "classification"): (
        "what its memory took up of the network's features of the support images, and of their classes"
    ),
    ("ranked_regions_predictor", "segmentation"): (
        "one blurred map of where the support's masks lie, and the shape and place of each in figures"
    ),
}
"""What a predictor that compares every scan with its support keeps of it, by what makes the predictor and by
task. All others keep weights alone; but of one patient a class, or of a learner that compares, these are the
network's features of single patients, which :data:`_NOTHING` says of every bundle."""

_NOTHING = """\
This bundle holds no image and no annotation. Its weights were learnt from a few patients, and may hold what a
network's features of a single one are.
"""
_SOMETHING = """\
This bundle holds no image as it was taken, but it holds {held}.
That was made from single patients' scans and annotations, and goes wherever the bundle goes.
"""
_TO_NAME = """\
Its weights were learnt from data that their owners licensed to whoever made it; that licence, and any
condition it puts on the weights, is to be named here before the bundle is handed on.
"""


def held_of(layers: Sequence[Mapping[str, Any]], task: str) -> str | None:
    """What a bundle holds of its support patients, besides weights; None where that is nothing.

    Example:
        >>> held_of([{"_target_": "torch.nn.ReLU"}], "segmentation") is None
        True
    """
    return HOLDS.get((str(layers[0]["_target_"]).rpartition(".")[2], task))


def data_licence(held: str | None) -> str:
    """What is to be said of the data, for whoever hands the bundle on to complete.

    Args:
        held: as :func:`held_of` says it.
    """
    return f"{_SOMETHING.format(held=held) if held else _NOTHING}\n{_TO_NAME}"


def names_licence(text: str) -> bool:
    """Whether somebody has named a licence in what :func:`data_licence` of any version said.

    Example:
        >>> names_licence(data_licence(None)), names_licence("CC BY 4.0, the owners")
        (False, True)
    """
    return not text.endswith(_TO_NAME)


def card(metadata: Mapping[str, Any], plan: Plan, held: str | None = None) -> str:
    """The model card of a bundle, in Markdown.

    Args:
        metadata: as :func:`medmeta.clinical.config.metadata` makes it.
        plan: the preprocessing.
        held: what it holds of its support patients, as :func:`held_of` says it.
    """
    import jinja2

    own = metadata["medmeta"]
    windowed = plan.intensity == "window"
    loader = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=False, keep_trailing_newline=True
    )
    return loader.get_template("card.md.j2").render(
        title=metadata["name"],
        description=metadata["description"],
        task=own["task"],
        classes=own["classes"],
        plan=plan,
        spacing=" x ".join(f"{s:.3g}" for s in plan.spacing),
        patch=" x ".join(map(str, plan.patch)),
        intensity=f"clipped to {plan.low:.4g} ... {plan.high:.4g}" if windowed else "each scan's own scale",
        facts=_facts(own["about"]),
        expressions=EXPRESSIONS,
        endings=ENDINGS,
        held=held,
        needs_medmeta="medmeta" in metadata["required_packages_version"],
        segments=own["task"] == "segmentation",
        least_ml=own["about"].get("confidence", {}).get("least_ml"),
        results=own.get("results"),
        **_table(own.get("results")),
    )


def _table(results: Mapping[str, Any] | None) -> dict[str, Any]:
    """Rows of an evaluation: type, labels, method, and each metric with its interval; and its episodes."""
    if results is None:
        return {"metrics": [], "rows": [], "episodes": ""}
    cells = [
        (tumour, shots, method, figures)
        for tumour, table in results["results"].items()
        for shots, methods in table.items()
        for method, figures in methods.items()
    ]
    metrics = sorted({name for *_, figures in cells for name in figures})
    rows = [[*place, *(_interval(figures.get(m)) for m in metrics)] for *place, figures in cells]
    drawn = results["episodes"]
    if isinstance(drawn, Mapping):  # by task; earlier versions gave one number
        drawn = ", ".join(f"{count} of {task}" for task, count in drawn.items())
    return {"metrics": metrics, "rows": rows, "episodes": drawn}


def _interval(value: Mapping[str, float | None] | None) -> str:
    if value is None or any(value[part] is None for part in ("mean", "low", "high")):
        return "n/a"
    return f"{value['mean']:.3g} [{value['low']:.3g} to {value['high']:.3g}]"


def licence() -> str:
    """The Apache License 2.0."""
    return (_TEMPLATES / "LICENSE.j2").read_text(encoding="utf-8")


def _facts(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a person wants to see of the adaptation: single values, and how many of a list."""
    facts = []
    for name, value in about.items():
        if isinstance(value, (list, tuple)):
            facts.append((name, f"{len(value)}"))
        elif name in ("confidence", "false_alarms"):
            facts += [(f"{name.replace('_', ' ')}: {k.replace('_', ' ')}", f"{v}") for k, v in value.items()]
        elif not isinstance(value, Mapping):
            facts.append((name, str(value)))
    return facts
