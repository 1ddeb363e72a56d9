"""Two processes give what one gives; where one dies, the training ends with an error."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from medmeta.training import RunError, Schedule, meta_train
from medmeta.training.checkpoint import read_tensors
from medmeta.training.ranks import Ranks
from tests.training.phantoms import Points, learner

ROOT = Path(__file__).resolve().parents[2]

WORKER = """
import os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
import torch
torch.set_num_threads(1)
from medmeta.training import Schedule, meta_train
from medmeta.training.checkpoint import write_tensors
from medmeta.training.ranks import Ranks
from tests.training.phantoms import Points, learner

class Source:
    def __getitem__(self, index):
        if index >= {dies} and os.environ["RANK"] == "1":
            os._exit(7)
        return Points()[index]

ranks = Ranks.join(timeout_s=30)
assert ranks.first("of rank " + str(ranks.rank)) == "of rank 0"
made = learner()
schedule = Schedule(steps=6, meta_batch={batch}, rate=1e-2, validate_every=2, patience=1)
scores = iter([0.1, 0.2, 0.3] if ranks.rank == 0 else [0.3, 0.2, 0.1])  # by its own, rank 1 would end early
end = meta_train(made, Source(), schedule, validate=lambda _: next(scores), ranks=ranks)
assert (end.step, end.best, end.since_best) == (6, 0.3, 0), end
if ranks.rank == 0:
    write_tensors(Path({out!r}), made.state_dict())
ranks.wait()
ranks.leave()
"""


def launch(folder: Path, *, batch: int, dies: int = 10**9) -> subprocess.CompletedProcess[str]:
    file = folder / "worker.py"
    out = str(folder / "w.safetensors")
    file.write_text(WORKER.format(root=str(ROOT), out=out, batch=batch, dies=dies))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(file),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    batch = 3  # one process has two of them, the other one
    done = launch(tmp_path, batch=batch)
    assert done.returncode == 0, done.stderr[-2000:]
    alone = learner()
    assert isinstance(alone, nn.Module)
    meta_train(alone, Points(), Schedule(steps=6, meta_batch=batch, rate=1e-2))
    together = read_tensors(tmp_path / "w.safetensors")[0]
    for name, weight in alone.state_dict().items():
        torch.testing.assert_close(together[name], weight, rtol=1e-6, atol=1e-6)


def test_a_process_that_dies_ends_the_training(tmp_path: Path) -> None:
    began = time.monotonic()
    done = launch(tmp_path, batch=2, dies=6)
    assert done.returncode != 0
    assert time.monotonic() - began < 120
    assert not (tmp_path / "w.safetensors").exists()


def test_each_process_takes_its_own_gpu_before_it_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without GPUs here: only the order of the calls is looked at."""
    called: list[object] = []
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setitem(os.environ, name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: called.append(("gpu", number)))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: called.append(backend))
    monkeypatch.setattr(dist, "get_rank", lambda: 3)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    assert Ranks.join() == Ranks(3, 4)
    assert called == [("gpu", 1), "nccl"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        RunError, match="wanted a GPU for each process, found 1 for process 2 of this machine"
    ):
        Ranks.join()
