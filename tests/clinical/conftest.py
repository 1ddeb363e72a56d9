"""One tiny bundle of each kind, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medmeta.clinical import export
from medmeta.episodes import Examples, generator_of, support_examples
from medmeta.learners import create_learner
from medmeta.networks import build, encoder, unet
from medmeta.volumes import Cohort, Plan, Store, make_plan, open_cohort


@pytest.fixture(scope="session")
def cohort(sample_data: Path) -> Cohort:
    return open_cohort(sample_data)


@pytest.fixture(scope="session")
def unseen(cohort: Cohort) -> tuple[Path, Path]:
    """A NIfTI file and a DICOM series of patients that no bundle here learnt from."""
    images = [v.image[0] for v in cohort.of("sericate", "crested")]
    return next(i for i in images if i.is_file()), next(i for i in images if i.is_dir())


@pytest.fixture(scope="session")
def segment_bundle(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network with prototypes of two patients, at 4 mm."""
    torch.manual_seed(0)
    support = cohort.of("brindled")[:2]
    plan = make_plan(support, spacing=(4.0, 4.0, 4.0), patch=(16, 16, 16))
    store = Store(plan)
    examples = support_examples([store.read(v) for v in support], plan, generator_of(0))
    spec = unet(3, 1, base=4)
    predictor = create_learner("prototypical", build(spec)).adapt(examples)
    return export(
        predictor,
        plan=plan,
        network_spec=spec,
        classes=examples.classes,
        task="segmentation",
        about={"shots": 2},
        out=tmp_path_factory.mktemp("bundles") / "segment",
    )


@pytest.fixture(scope="session")
def classify_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    plan = Plan(3, (6.0, 6.0, 6.0), (16, 16, 16), 1, whole=True)
    spec = encoder(3, 1, base=4)
    examples = Examples(torch.rand(4, 1, 16, 16, 16), torch.tensor([0, 0, 1, 1]), ("glioma", "metastasis"))
    predictor = create_learner("prototypical", build(spec)).adapt(examples)
    return export(
        predictor,
        plan=plan,
        network_spec=spec,
        classes=examples.classes,
        task="classification",
        out=tmp_path_factory.mktemp("bundles") / "classify",
    )


@pytest.fixture
def flat_parts() -> Callable[[], dict[str, Any]]:
    """Makes the arguments of ``export`` for a tiny network in 2D."""

    def make() -> dict[str, Any]:
        torch.manual_seed(0)
        spec = unet(2, 1, base=2)
        label = torch.zeros(2, 16, 16, dtype=torch.int64)
        label[:, 4:9, 4:9] = 1
        support = Examples(torch.rand(2, 1, 16, 16), label, ("background", "glioma"))
        return {
            "predictor": create_learner("prototypical", build(spec)).adapt(support),
            "plan": Plan(2, (1.0, 1.0, 1.0), (16, 16), 1),
            "network_spec": spec,
            "classes": support.classes,
            "task": "segmentation",
        }

    return make
