"""Learners: ``adapt(support)`` gives a predictor. MAML and its kin, metric learners, honest baselines."""

from medmeta.learners.plain import plain_network
from medmeta.learners.protocol import Learner, LearnerError, Predictor
from medmeta.learners.registry import create_learner, learner_names, load_weights
from medmeta.learners.safeguard import SAFEGUARD, FineTuning, Safeguarded
from medmeta.learners.tuning import stepping, tune_rates

__all__ = [
    "SAFEGUARD",
    "FineTuning",
    "Learner",
    "LearnerError",
    "Predictor",
    "Safeguarded",
    "create_learner",
    "learner_names",
    "load_weights",
    "plain_network",
    "stepping",
    "tune_rates",
]
