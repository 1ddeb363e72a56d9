"""medmeta: a new tumour type, a handful of labels, a model a hospital pipeline can run today."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# torch takes seconds to import, so the public names are found when they are first asked for (PEP 562)
_HOME = {
    "open_cohort": "medmeta.volumes",
    "create_learner": "medmeta.learners",
    "learner_names": "medmeta.learners",
    "train": "medmeta.training",
    "load_run": "medmeta.training",
    "evaluate": "medmeta.evaluation",
    "load_bundle": "medmeta.clinical",
    "adapt": "medmeta.clinical",
    "predict": "medmeta.clinical",
    "inspect": "medmeta.volumes",
    "quickstart": "medmeta.quickstart",
}
__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value  # importing medmeta.quickstart puts the module of that name here
        return value
    raise AttributeError(f"module 'medmeta' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
