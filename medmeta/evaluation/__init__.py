"""Is it any good? Held-out tumour types, honest baselines, intervals clustered by patient, the report."""

from medmeta.evaluation.advice import Advice, advise
from medmeta.evaluation.evaluate import NAMES, SCRATCH, evaluate
from medmeta.evaluation.intervals import Interval, clustered
from medmeta.evaluation.own_cases import OwnAnswer, advise_on
from medmeta.evaluation.patients import cases_csv
from medmeta.evaluation.pixels import Trees
from medmeta.evaluation.propose import propose
from medmeta.evaluation.protocol import (
    Case,
    EvaluationError,
    Judged,
    Picture,
    judge_classification,
    judge_segmentation,
)
from medmeta.evaluation.report import Part, Report, render
from medmeta.evaluation.results import results, versions

__all__ = [
    "NAMES",
    "SCRATCH",
    "Advice",
    "Case",
    "EvaluationError",
    "Interval",
    "Judged",
    "OwnAnswer",
    "Part",
    "Picture",
    "Report",
    "Trees",
    "advise",
    "advise_on",
    "cases_csv",
    "clustered",
    "evaluate",
    "judge_classification",
    "judge_segmentation",
    "propose",
    "render",
    "results",
    "versions",
]
