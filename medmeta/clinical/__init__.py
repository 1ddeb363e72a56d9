"""Adapted predictors as MONAI bundles: export, whole-scan prediction, checks before anything is run."""

from medmeta.clinical.adapt import adapt
from medmeta.clinical.bundle import BundleError
from medmeta.clinical.export import export
from medmeta.clinical.handing_on import hand_on
from medmeta.clinical.loading import BundlePredictor, load_bundle
from medmeta.clinical.pacs import studies
from medmeta.clinical.pairing import masks_of
from medmeta.clinical.predict import predict
from medmeta.clinical.verify import verify
from medmeta.clinical.workflow import Evaluation, Inference, inferer_of, predict_all

__all__ = [
    "BundleError",
    "BundlePredictor",
    "Evaluation",
    "Inference",
    "adapt",
    "export",
    "hand_on",
    "inferer_of",
    "load_bundle",
    "masks_of",
    "predict",
    "predict_all",
    "studies",
    "verify",
]
