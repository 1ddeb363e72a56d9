"""Two sites with tumour types of their own: two rounds of averaged weights, by MONAI's federated client."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medmeta.learners import create_learner
from medmeta.training import RunError, meta_update, open_run
from medmeta.training.federated import finish
from medmeta.volumes import open_cohort
from tests.training.phantoms import Points

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
BUNDLE = Path(__file__).resolve().parents[2] / "workflows" / "federated"
SITES = {"north": ("annular", "fluted"), "south": ("brindled", "nodose")}
JUDGED = "hollow"


def site(sample_data: Path, types: tuple[str, ...], folder: Path) -> tuple[Path, list[str]]:
    """A site's copy of the bundle with its own cohort, made small; and its patients."""
    shutil.copytree(BUNDLE, folder)
    cohort = open_cohort(sample_data)
    rows, patients = ["patient,image,mask,tumor"], []
    for name in (*types, JUDGED):
        for v in [v for v in cohort.of(name) if v.image[0].is_file()][:6]:
            assert v.mask is not None
            rows.append(f"{v.patient},{v.image[0].resolve()},{v.mask.resolve()},{name}")
            patients.append(v.patient)
    (folder / "data").mkdir()
    (folder / "data" / "cohort.csv").write_text("\n".join(rows) + "\n")
    file = folder / "configs" / "train.json"
    config = json.loads(file.read_text())
    config.update(
        dataset_dir=str(folder / "data"), validate_on=[JUDGED], episodes=20, val_episodes=6, rate=0.01
    )
    config["plan"].update(spacing=[5.0, 5.0, 5.0], patch=[16, 16, 16])
    config["network_def"].update(channels=[4, 8, 16, 32], out_channels=8)
    file.write_text(json.dumps(config))
    return folder, patients


def average(many: list[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([one[name] for one in many]).mean(0) for name in many[0]}


def test_two_rounds_raise_the_score_and_nobody_is_named(sample_data: Path, tmp_path: Path) -> None:
    from monai.fl.client import MonaiAlgo
    from monai.fl.utils.constants import ExtraItems
    from monai.fl.utils.exchange_object import ExchangeObject

    clients, secrets = [], [str(tmp_path), "nifti", "cohort.csv"]
    for name, types in SITES.items():
        folder, patients = site(sample_data, types, tmp_path / name)
        client = MonaiAlgo(bundle_root=str(folder), send_weight_diff=False)
        torch.manual_seed(0)  # all start alike
        client.initialize(extra={ExtraItems.CLIENT_NAME: name})
        clients.append(client)
        secrets += [*patients, *types]
    weights = clients[0].get_weights().weights
    scores: list[float] = []
    sent: list[Any] = []

    def judge() -> None:
        answers = [client.evaluate(ExchangeObject(weights=weights)) for client in clients]
        sent.extend(answers)
        scores.append(sum(a.metrics["score"] for a in answers) / len(answers))

    judge()
    for _ in range(2):
        for client in clients:
            client.train(ExchangeObject(weights=weights))
        answers = [client.get_weights() for client in clients]
        sent.extend(answers)
        assert not torch.equal(*[next(iter(a.weights.values())) for a in answers])  # each learnt its own
        weights = average([a.weights for a in answers])
        judge()
    assert scores[2] > scores[0] + 0.02, scores
    said = pickle.dumps([{**one} for one in sent])
    assert not [secret for secret in secrets if secret.encode() in said]
    for one in sent:
        assert {*one.get("statistics", {})} <= {
            "total_epochs",
            "total_iterations",
            "current_epoch",
            "current_iteration",
            "num_executed_iterations",
        }
        assert all(isinstance(w, torch.Tensor) for w in (one.weights or {}).values())

    run = finish(tmp_path / "north", weights, tmp_path / "run")
    assert all(torch.equal(w, weights[n]) for n, w in open_run(run.path).learner.state_dict().items())
    with pytest.raises(RunError, match="does not exist"):
        finish(tmp_path / "north", weights, tmp_path / "run")


class Exploding(torch.autograd.Function):
    """The identity, with an infinite slope."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *slope: torch.Tensor) -> torch.Tensor:
        return slope[0] * float("inf")


class Steep(torch.nn.Module):
    """A backbone whose features are finite and whose gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(5, 8)

    def forward(self, x: torch.Tensor) -> Any:
        return Exploding.apply(self.layer(x))


def test_a_gradient_that_is_not_finite_leaves_the_weights() -> None:
    learner: Any = create_learner("prototypical", Steep())
    before = {n: w.clone() for n, w in learner.state_dict().items()}
    engine = SimpleNamespace(
        network=learner,
        optimizer=torch.optim.Adam(learner.parameters()),
        state=SimpleNamespace(device=torch.device("cpu")),
    )
    with pytest.raises(
        RunError, match=r"wanted a finite meta-gradient, found a length of .* Lower the learning rate"
    ):
        meta_update(engine, Points()[0])
    assert all(torch.equal(w, before[n]) for n, w in learner.state_dict().items())


def test_the_bundle_has_no_code_of_its_own_and_every_property_of_a_training() -> None:
    assert {p.suffix for p in (BUNDLE / "configs").rglob("*") if p.is_file()} == {".json"}
    config = json.loads((BUNDLE / "configs" / "train.json").read_text())
    expressions = {text for text in _texts(config) if text.startswith("$")}
    assert expressions == {
        "$import torch",
        "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "$@learner.to(@device)",
        "$@network.parameters()",
        "$@train#trainer.run()",
    }
    from monai.bundle import ConfigWorkflow

    files = {"train": ("train",), "evaluation": ("train", "evaluate")}  # a client lays one over the other
    for kind, parts in files.items():
        workflow = ConfigWorkflow(
            config_file=[str(BUNDLE / "configs" / f"{part}.json") for part in parts],
            meta_file=str(BUNDLE / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type=kind,
            dataset_dir=str(BUNDLE.parents[1] / "sample_data"),
        )
        workflow.initialize()
        assert workflow.check_properties() == [], kind


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [t for k, v in value.items() for t in [k, *_texts(v)]]
    if isinstance(value, list):
        return [t for v in value for t in _texts(v)]
    return [value] if isinstance(value, str) else []
