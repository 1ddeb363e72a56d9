"""``--tracking mlflow`` on the workflows: MONAI's own handler, MLflow's own store.

pip install mlflow==3.17.2 && pytest -m slow tests/clinical/test_tracking.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from medmeta.volumes import Cohort
from tests.clinical.test_workflows import SMALL, WORKFLOWS, check, command, steps

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SMALL)
def test_every_stage_is_tracked(name: str, cohort: Cohort, unseen: tuple[Path, Path], tmp_path: Path) -> None:
    """The workflow as it is without tracking, and a run in MLflow for each of its engines."""
    pytest.importorskip("mlflow", reason="pip install mlflow, which no extra has")
    for config, told in steps(name, cohort, unseen, tmp_path):
        told = {"bundle_root": str(tmp_path), **told, "run_name": config}
        if config != "adapt":  # which has no engine
            told["tracking"] = "mlflow"
        command([sys.executable, "-W", "ignore"], str(WORKFLOWS / name / "configs" / f"{config}.json"), told)
    check(name, tmp_path)
    tracked = runs(tmp_path / "mlruns.db")
    assert set(tracked) == {"train", "evaluate", "inference"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert tracked["train"]["train_loss"] == pytest.approx(lines[-1]["loss"])
    assert {"loss", "rate", "pretraining/loss"} <= set(tracked["train"])
    results = json.loads((tmp_path / "report" / "results.json").read_text())["results"]["mottled"]["1"]
    for method, figures in results.items():
        for metric, value in figures.items():
            found = tracked["evaluate"].get(f"{metric}/mottled/1/{method}")
            assert found == (None if value["mean"] is None else pytest.approx(value["mean"]))
    assert tracked["inference"] == {"scans": 2.0, "failed": 0.0}
    kept = b"".join(f.read_bytes() for f in tmp_path.glob("mlruns*") if f.is_file())
    secrets = [v.patient for v in cohort.volumes] + [path.name for path in unseen]
    assert not [secret for secret in secrets if secret.encode() in kept]


def runs(store: Path) -> dict[str, dict[str, Any]]:
    """The finished runs of MONAI's experiment, with their last figures."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("monai_experiment")
    found = client.search_runs(experiment.experiment_id)
    assert {r.info.status for r in found} == {"FINISHED"}
    return {r.info.run_name: dict(r.data.metrics) for r in found}
