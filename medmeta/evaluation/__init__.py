"""Is it any good? Held-out tumour types, honest baselines, intervals clustered by patient, the report."""

from medmeta.evaluation.intervals import Interval, clustered
from medmeta.evaluation.pixels import Trees
from medmeta.evaluation.protocol import (
    Case,
    EvaluationError,
    Judged,
    Picture,
    judge_classification,
    judge_segmentation,
)

__all__ = [
    "Case",
    "EvaluationError",
    "Interval",
    "Judged",
    "Picture",
    "Trees",
    "clustered",
    "judge_classification",
    "judge_segmentation",
]
