"""The launch recipe for NVFlare in its own simulator: two sites, two rounds, and a run at the end.

pip install nvflare==2.9.0 && pytest -m slow tests/training/test_nvflare.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medmeta.training import open_run
from tests.training.test_federated import SITES, site

pytestmark = pytest.mark.slow


@pytest.mark.timeout(1200)
def test_two_sites_in_the_simulator(sample_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("nvflare", reason="pip install nvflare, which no extra has")
    patients = [p for name, types in SITES.items() for p in site(sample_data, types, tmp_path / name)[1]]
    bundle = tmp_path / "{site}"
    told = {"MEDMETA_BUNDLE": str(bundle), "MEDMETA_COHORT": str(bundle / "data")}

    def job(*command: str) -> None:
        line = [sys.executable, "-W", "ignore", str(tmp_path / "north" / "nvflare_job.py"), *command]
        ran = subprocess.run(line, capture_output=True, text=True, check=False, env={**os.environ, **told})
        assert ran.returncode == 0, ran.stderr[-3000:]

    job("simulate", str(tmp_path / "work"), "--sites", *SITES)
    server = tmp_path / "work" / "server"
    model = next(server.rglob("FL_global_model.pt"))
    job("finish", str(model), "--out", str(tmp_path / "run"))
    learner = open_run(tmp_path / "run").learner
    assert all(bool(torch.isfinite(w).all()) for w in learner.state_dict().values())
    for name in SITES:  # each judges the averaged weights that it is sent, round by round
        lines = (tmp_path / "work" / name / "log.txt").read_text()
        scores = [float(score) for score in re.findall(r"new best metric of score: (0\.\d+)", lines)]
        assert len(scores) == 2  # the second is better than the first
    sent = b"".join(f.read_bytes() for f in server.rglob("*") if f.is_file())
    assert not [p for p in patients if p.encode() in sent]
