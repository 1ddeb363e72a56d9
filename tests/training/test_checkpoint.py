"""A checkpoint is whole or as it was: killed at every file operation, on a full disk, with a flipped bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medmeta.learners import create_learner, learner_names
from medmeta.networks import build, unet
from medmeta.training import RunError
from medmeta.training.checkpoint import read_tensors, write_tensors

KILLED = """
import io, os, sys
from pathlib import Path
import torch
from medmeta.training.checkpoint import read_tensors, write_tensors

file = Path(sys.argv[1])
old, new = torch.zeros(4000), torch.ones(4000)
write_tensors(file, {"w": old})

def lethal(real, partly=None):  # dies before the operation, or after a part of it
    def operation(*given, **named):
        global left
        if left == 0:
            if partly:
                partly(*given)
            os._exit(9)
        left -= 1
        return real(*given, **named)
    return operation

for count in range(99):
    child = os.fork()
    if child == 0:
        left = count
        opened = Path.open
        class Dying(io.BufferedWriter):
            def write(self, content):
                def half(content):
                    super(Dying, self).write(content[: len(content) // 2])
                    self.flush()
                return lethal(super().write, half)(content)
        Path.open = lambda path, mode: lethal(lambda: Dying(io.FileIO(path, "x")))()
        for name in ("fsync", "replace", "open", "close"):
            setattr(os, name, lethal(getattr(os, name)))
        write_tensors(file, {"w": new})
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found = read_tensors(file)[0]["w"]
    print(count, status, int(found[0]) if torch.equal(found, old) or torch.equal(found, new) else "torn")
    if status == 0:
        break
    write_tensors(file, {"w": old})
"""

FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from medmeta.training.checkpoint import RunError, write_tensors

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_tensors(Path(sys.argv[1]), {"w": torch.ones(4000)})
except RunError as error:
    print(error)
"""


def script(text: str, file: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text, str(file)],
        capture_output=True,
        timeout=300,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_a_kill_at_any_file_operation_leaves_one_that_loads(tmp_path: Path) -> None:
    rows = [line.split() for line in script(KILLED, tmp_path / "last.safetensors")]
    assert len(rows) >= 7  # open, write, fsync, replace, and the folder's open, fsync, close
    assert [status for _, status, _ in rows] == ["9"] * (len(rows) - 1) + ["0"]
    found = [state for _, _, state in rows]
    assert found == sorted(found)  # the old ones, then the new ones; never a torn one
    assert {"0", "1"} == set(found)


def test_a_full_disk_leaves_the_previous_one_intact(tmp_path: Path) -> None:
    file = tmp_path / "last.safetensors"
    write_tensors(file, {"w": torch.zeros(4000)}, {"step": 1})
    said = script(FULL, file)
    assert said == [
        "wanted room to write last.safetensors, found File too large. "
        "Free disk space; the previous file is intact."
    ]
    assert read_tensors(file)[1] == {"step": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["last.safetensors"]


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    write_tensors(file, {"w": torch.arange(6.0), "n": torch.tensor(3)}, {"step": 1})
    whole = file.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        file.write_bytes(damaged)
        try:
            found = read_tensors(file)
        except RunError as error:
            assert "a damaged file" in str(error)  # noqa: PT017
        else:  # a flip that JSON does not mind, such as in a space that pads the header
            assert torch.equal(found[0]["w"], torch.arange(6.0))
            assert torch.equal(found[0]["n"], torch.tensor(3))
            assert found[1] == {"step": 1}


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"wanted the file none\.safetensors, found none"):
        read_tensors(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text(json.dumps({"w": 1}))
    with pytest.raises(RunError, match="damaged"):
        read_tensors(tmp_path / "text")
    write_tensors(tmp_path / "nan", {"w": torch.tensor([1.0, float("nan")])})
    with pytest.raises(RunError, match="NaN or infinity in w"):
        read_tensors(tmp_path / "nan")


def test_one_tensor_under_two_names_comes_back_under_both(tmp_path: Path) -> None:
    weight = torch.arange(6.0)
    write_tensors(
        tmp_path / "w", {"own": weight, "tied": weight, "part": weight[2:4], "spread": weight[:1].expand(3)}
    )
    found = read_tensors(tmp_path / "w")[0]
    assert {n: t.tolist() for n, t in found.items()} == {
        "own": [0, 1, 2, 3, 4, 5],
        "tied": [0, 1, 2, 3, 4, 5],
        "part": [2, 3],
        "spread": [0, 0, 0],
    }
    assert weight.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", learner_names())
def test_every_learner_can_be_saved(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    one, other = (create_learner(name, build(unet(2, 1))) for _ in range(2))
    write_tensors(tmp_path / "w", one.state_dict())
    assert isinstance(other, torch.nn.Module)
    other.load_state_dict(read_tensors(tmp_path / "w")[0])
    assert all(torch.equal(w, other.state_dict()[n]) for n, w in one.state_dict().items())
