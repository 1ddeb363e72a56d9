"""Is it any good? Held-out tumour types, honest baselines, intervals clustered by patient, the report."""

from medmeta.evaluation.advice import Advice, advise, judge_further
from medmeta.evaluation.answers import Answers
from medmeta.evaluation.baselines import NAMES, SCRATCH, baselines
from medmeta.evaluation.catalogue import Catalogue
from medmeta.evaluation.drawing import manifest_of, write_manifest
from medmeta.evaluation.evaluate import Beside, evaluate
from medmeta.evaluation.intervals import Interval, clustered
from medmeta.evaluation.manifest import Manifest, open_manifest
from medmeta.evaluation.own_cases import OwnAnswer, advise_on
from medmeta.evaluation.patients import cases_csv
from medmeta.evaluation.pixels import Trees
from medmeta.evaluation.proof import Proof, prove
from medmeta.evaluation.propose import propose
from medmeta.evaluation.protocol import judge_classification, judge_segmentation, replay
from medmeta.evaluation.records import Case, EvaluationError, Judged, Picture
from medmeta.evaluation.report import Part, Report, render
from medmeta.evaluation.results import results, versions
from medmeta.evaluation.supports import draw_classification, draw_segmentation

__all__ = [
    "NAMES",
    "SCRATCH",
    "Advice",
    "Answers",
    "Beside",
    "Case",
    "Catalogue",
    "EvaluationError",
    "Interval",
    "Judged",
    "Manifest",
    "OwnAnswer",
    "Part",
    "Picture",
    "Proof",
    "Report",
    "Trees",
    "advise",
    "advise_on",
    "baselines",
    "cases_csv",
    "clustered",
    "draw_classification",
    "draw_segmentation",
    "evaluate",
    "judge_classification",
    "judge_further",
    "judge_segmentation",
    "manifest_of",
    "open_manifest",
    "propose",
    "prove",
    "render",
    "replay",
    "results",
    "versions",
    "write_manifest",
]
