"""MONAI Label's server on an exported bundle: it lists it, infers, and labels and grid are right."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from medmeta.clinical import export, predict
from medmeta.episodes import generator_of, support_examples
from medmeta.learners import create_learner
from medmeta.networks import build, unet
from medmeta.volumes import Store, make_plan, open_cohort

VENV = Path(os.environ.get("MONAILABEL_VENV", Path(__file__).with_name("venv")))
NAME = "brindled_segmentation"  # the type of a model is read from its folder's name

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (VENV / "bin" / "monailabel").is_file(), reason="tests/monailabel/set_up.sh makes its environment"
    ),
]


def bundle(sample_data: Path, folder: Path) -> None:
    """An untrained network with prototypes of two patients, at 4 mm."""
    torch.manual_seed(0)
    support = open_cohort(sample_data).of("brindled")[:2]
    plan = make_plan(support, spacing=(4.0, 4.0, 4.0), patch=(16, 16, 16))
    store, spec = Store(plan), unet(3, 1, base=4)
    examples = support_examples([store.read(v) for v in support], plan, generator_of(0))
    predictor = create_learner("prototypical", build(spec)).adapt(examples)
    given = {"plan": plan, "network_spec": spec, "classes": examples.classes, "task": "segmentation"}
    export(predictor, **given, out=folder)


@pytest.fixture(scope="module")
def server(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The bundle app with one bundle and one scan, on a loopback port."""
    work = tmp_path_factory.mktemp("monailabel")
    shutil.copytree(VENV / "monailabel" / "sample-apps" / "monaibundle", work / "app")
    (work / "app" / "model").mkdir()
    bundle(sample_data, work / "app" / "model" / NAME)
    (work / "studies").mkdir()
    scan = next(v.image[0] for v in open_cohort(sample_data).of("sericate") if v.image[0].is_file())
    shutil.copy(scan, work / "studies" / "scan.nii.gz")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"models": NAME, "zoo_source": "local", "sam2": "false", "skip_trainers": "true"}
    command = [str(VENV / "bin" / "monailabel"), "start_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--app", str(work / "app"), "--studies", str(work / "studies")]
    command += [part for item in told.items() for part in ("--conf", *item)]
    environment = {**os.environ, "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    with (work / "log").open("w") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            yield _ready(f"http://127.0.0.1:{port}", running, work / "log"), work
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, 15)
            running.wait(30)


def _ready(address: str, running: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(120):
        assert running.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(f"{address}/info/", timeout=5).close()
            return address
        time.sleep(2)
    raise AssertionError(log.read_text()[-3000:])


def test_it_is_listed_with_its_labels_and_dimension(server: tuple[str, Path]) -> None:
    with urllib.request.urlopen(f"{server[0]}/info/", timeout=60) as answer:
        info: dict[str, Any] = json.load(answer)
    assert set(info["models"]) == {NAME}
    model = info["models"][NAME]
    assert (model["type"], model["dimension"], model["labels"]) == ("segmentation", 3, {"brindled": 1})


def test_it_infers_what_predict_says(server: tuple[str, Path], tmp_path: Path) -> None:
    address, work = server
    asked = urllib.request.Request(
        f"{address}/infer/{NAME}?image=scan&output=image",
        data=urllib.parse.urlencode({"params": json.dumps({"device": "cpu"})}).encode(),
    )
    with urllib.request.urlopen(asked, timeout=300) as answer:
        (tmp_path / "label.nii.gz").write_bytes(answer.read())
    (own,) = predict(work / "app" / "model" / NAME, [work / "studies" / "scan.nii.gz"], tmp_path / "own")
    scan, label = nibabel.load(work / "studies" / "scan.nii.gz"), nibabel.load(tmp_path / "label.nii.gz")
    assert label.shape == scan.shape
    assert np.allclose(label.affine, scan.affine, atol=1e-4)
    found, wanted = (
        np.asarray(n.dataobj) > 0 for n in (label, nibabel.load(tmp_path / "own" / own["files"][0]))
    )
    assert wanted.any()
    assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > 0.99
    assert set(np.unique(label.dataobj)) == {0, 1}
