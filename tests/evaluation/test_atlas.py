"""The lesion atlas: nobody on two sides, cells that keep their targets, and a stop that loses nothing."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from medmeta.episodes import Episode, Examples
from medmeta.learners import create_learner
from medmeta.training.outer import Schedule, Stopped

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data" / "images" / "atlas"


def script(name: str) -> ModuleType:
    """As ``python benchmarks/atlas.py`` has it: the scripts beside it can be imported."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def data() -> ModuleType:
    return script("atlas_data")


@pytest.fixture(scope="module")
def methods() -> ModuleType:
    return script("atlas_methods")


def test_neighbouring_numbers_are_one_patient_and_other_letters_another(data: ModuleType) -> None:
    assert data.neighbours(["a_3", "a_40", "a_12", "b_4"]) == ["a_3", "a_40", "a_3", "b_4"]


def test_cells_hold_every_pixel_and_a_target_smaller_than_one(data: ModuleType) -> None:
    label = torch.zeros(2, 8, 8).long()
    label[0, 3, 3] = 1  # a quarter of a cell
    label[1, 2:6, 2:5] = 1  # whole cells and halves
    image = torch.rand(2, 1, 8, 8)
    cells = data.celled(Examples(image, label, ("background", "target"), ("p", "q")))
    assert cells.image.flatten(1).sort(1).values.equal(image.flatten(1).sort(1).values)
    assert cells.label.flatten(1).sum(1).tolist() == [1, 4]
    assert cells.label[0, 1, 1] == 1


def images(sets: Sequence[Any]) -> set[bytes]:
    return {one.numpy().tobytes() for s in sets for one in s.image}


@pytest.mark.skipif(not DATA.exists(), reason="the atlas is not beside the checkout")
def test_no_family_is_both_trained_on_and_chosen_by_or_tested(data: ModuleType) -> None:
    sets = data.read(DATA)
    for group, families in data.GROUPS.items():
        own = data.split(sets, group, organs=True)
        trained = [s.name for s in own.train]
        assert own.validate
        assert own.test
        assert not [n for n in trained if n.startswith(families + data.VALIDATION)]
        assert not {s.name for s in own.validate} & {s.name for s in own.test}
        # what networks and "ours" learn from once rates are chosen
        assert {s.name for s in own.every} >= {*trained, *(s.name for s in own.validate)}
        assert not [s.name for s in own.every if s.name.startswith(families)]
        assert not images(own.test) & images((*own.train, *own.validate, *own.every))


class _Source:
    """Bright squares on noise; stopped where it is told to."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop

    def __getitem__(self, index: int) -> Episode:
        if index == self.stop:
            raise Stopped
        generator = torch.Generator().manual_seed(index)
        image, label = torch.rand(4, 4, 16, 16, generator=generator), torch.zeros(4, 16, 16).long()
        label[:, 4:9, 4:9] = 1
        sides = [Examples(image[w] + label[w, None], label[w], ("a", "b")) for w in ([0, 1], [2, 3])]
        return Episode(*sides)


def test_stopped_training_goes_on_to_the_same_weights(
    methods: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "Schedule", lambda **given: Schedule(**{**given, "save_every": 2}))

    def trained(file: str, stop: int | None = None) -> Any:
        learner = create_learner("refined-ridge", methods.network(0))
        return methods.trained(learner, _Source(stop=stop), 4, tmp_path / file)

    straight = trained("one.safetensors")
    with pytest.raises(Stopped):
        trained("two.safetensors", stop=6)
    assert not (tmp_path / "two.safetensors").exists()
    resumed = trained("two.safetensors")
    for name, weight in straight.state_dict().items():
        assert resumed.state_dict()[name].equal(weight), name


def test_kept_work_is_not_gone_on_with_under_other_settings(tmp_path: Path) -> None:
    def folder(**given: object) -> Path:
        settings: dict[str, object] = {"out": tmp_path, "quick": False, "rank_steps": 1500, "draws": 10}
        made: Path = script("kept").folder_for(
            argparse.Namespace(**{**settings, **given}), ("quick", "rank_steps")
        )
        return made

    (tmp_path / "episodes.jsonl").write_text("")  # of before settings were kept: taken as it is
    assert folder() == folder(draws=2) == tmp_path
    with pytest.raises(SystemExit, match=r"--rank-steps 1500, not 200"):
        folder(rank_steps=200)
    assert folder(quick=True, rank_steps=200) == tmp_path / "quick"
    assert folder() == tmp_path
