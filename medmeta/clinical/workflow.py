"""What the workflows in source form call: engines that JSON describes and MONAI's ``run`` starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmeta.clinical.bundle import BundleError
from medmeta.clinical.config import inferer
from medmeta.clinical.loading import BundlePredictor
from medmeta.clinical.predict import predict
from medmeta.training import Run
from medmeta.training.events import Handlers
from medmeta.volumes import Cohort
from medmeta.volumes.component import component


def predict_all(bundle: Any, inputs: Any, out: Any, **options: Any) -> list[dict[str, Any]]:
    """:func:`medmeta.clinical.predict`, and an error at the end where a case failed.

    ``python -m monai.bundle run`` exits 0 unless something is raised; the other cases are there all the same.

    Raises:
        BundleError: where one failed, after all were tried, and as ``predict``.

    Example:
        >>> predict_all("no such folder", ["scan.nii.gz"], "out")
        Traceback (most recent call last):
            ...
        medmeta.clinical.bundle.BundleError: wanted a bundle folder, found none. Give the folder of a bundle.
    """
    results = predict(bundle, inputs, out, **options)
    failed = [r for r in results if not r["ok"]]
    if failed:
        raise BundleError(
            f"results of all {len(results)} cases",
            found=f"{len(failed)} that failed, {failed[0]['case']} first: {failed[0]['message']}",
            cure="Mend or leave out those; the others are written.",
        )
    return results


@dataclass
class Inference:
    """:func:`predict_all` with its arguments, to be started later.

    MONAI's ``ConfigWorkflow`` finds it as ``evaluator``, and may change what it is made of before it runs.

    Args:
        network: of a bundle.
        dataset: scans, as ``predict`` takes them.
        out: the folder to write.
        masks: where lesions are classified, the outline of one in each scan.
        formats: of a segmentation.
        val_handlers: MONAI's, such as the MLFlowHandler that ``--tracking mlflow`` adds: a scan is an
            iteration to them, whose output is ``ok``; all scans are an epoch, whose metrics are ``scans`` and
            ``failed``.

    Example:
        >>> Inference("no such folder", ["scan.nii.gz"], "out").run()
        Traceback (most recent call last):
            ...
        medmeta.clinical.bundle.BundleError: wanted a bundle folder, found none. Give the folder of a bundle.
    """

    network: BundlePredictor | str | Path
    dataset: Sequence[Any]
    out: str | Path
    masks: Sequence[str] | None = None
    formats: Sequence[str] = ("nifti",)
    val_handlers: Sequence[Any] = ()

    def run(self) -> list[dict[str, Any]]:
        """Predict; one object a scan.

        Raises:
            BundleError: as :func:`predict_all`.
        """
        done: list[bool] = []

        with Handlers(self.val_handlers, max_epochs=1) as told:

            def tell(one: Mapping[str, Any]) -> None:
                done.append(bool(one["ok"]))
                told.iteration({"ok": float(done[-1])})

            try:
                return predict_all(
                    self.network, self.dataset, self.out, masks=self.masks, formats=self.formats, tell=tell
                )
            finally:
                told.epoch({"scans": float(len(done)), "failed": float(done.count(False))})


@dataclass
class Evaluation:
    """:func:`medmeta.evaluation.evaluate` with its arguments, to be started later.

    MONAI's ``ConfigWorkflow`` finds it as ``evaluator``.

    Args:
        trained: what training left.
        dataset: the cohort to judge on.
        out: the folder to write.
        tumour, shots, episodes, seed: as ``evaluate`` has them.
        val_handlers: MONAI's, such as the MLFlowHandler that ``--tracking mlflow`` adds; the metrics of the
            one epoch are the means of ``results.json``, named ``dice/TYPE/SHOTS/METHOD``.

    Example:
        >>> Evaluation(None, Cohort("none", (), Path()), "report", "glioma", episodes=0).run()
        Traceback (most recent call last):
            ...
        medmeta.evaluation.records.EvaluationError: wanted at least 1 episode and 1 shot, found 0 episodes, \
shots 1, 3, 5. Give --episodes and --shots of 1 or more.
    """

    trained: Run
    dataset: Cohort
    out: str | Path
    tumour: str | None = None
    shots: Sequence[int] = (1, 3, 5)
    episodes: int = 10
    seed: int = 0
    val_handlers: Sequence[Any] = ()

    def run(self) -> dict[str, Any]:
        """Judge; what ``results.json`` holds.

        Raises:
            EvaluationError, EpisodeError: as ``evaluate``.
        """
        from medmeta.evaluation import evaluate  # the charts of a report are slow to import

        with Handlers(self.val_handlers, max_epochs=1) as told:
            content = evaluate(
                self.trained,
                self.dataset,
                self.out,
                tumour=self.tumour,
                shots=self.shots,
                episodes=self.episodes,
                seed=self.seed,
            )
            told.epoch(_means(content["results"]))
        return content


def _means(results: Mapping[str, Any]) -> dict[str, float]:
    """Every mean that there is, by the names of metric, type, shots and method."""
    return {
        f"{metric}/{tumour}/{shots}/{method}": float(value["mean"])
        for tumour, table in results.items()
        for shots, methods in table.items()
        for method, figures in methods.items()
        for metric, value in figures.items()
        if value["mean"] is not None
    }


def inferer_of(planned: BundlePredictor | Run) -> Any:
    """MONAI's inferer for the plan of a bundle or a run: the one that a bundle's own ``inference.json`` has.

    Whole-scan prediction has the same windows and weights, and passes over those without any body.
    """
    return component(inferer(planned.plan))
