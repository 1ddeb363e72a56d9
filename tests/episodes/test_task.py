"""Laws of an episode: patients apart, same seed same episode, nested supports; the impossible is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medmeta.episodes import (
    Augment,
    EpisodeError,
    Task,
    TaskSource,
    classification_task,
    generator_of,
    prefetch,
    segmentation_task,
)
from medmeta.episodes.augment import apply, draw
from medmeta.volumes import CohortError, Plan, Store, Volume

CROPS = Plan(3, (1.0, 1.0, 1.0), (8, 8, 8), 1)
WHOLE = replace(CROPS, whole=True, patch=(16, 16, 16))


def write(file: Path, voxels: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Path:
    """Save voxels as NIfTI."""
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*spacing, 1.0])), file)
    return file


def patient(
    folder: Path, name: str, tumour: str | None, *, shape: tuple[int, ...] = (20, 18, 16), seed: int = 0
) -> Volume:
    """One patient: noise, and a bright box as the tumour where there is one."""
    random = np.random.default_rng(seed)
    voxels = random.random(shape, dtype=np.float32)
    mask = np.zeros(shape, dtype=np.uint8)
    if tumour is not None:
        start = [int(random.integers(0, s - 3)) for s in shape]
        box = tuple(slice(a, a + 3) for a in start)
        voxels[box] += 3
        mask[box] = 1
    image = write(folder / f"{name}.nii.gz", voxels)
    return Volume(name, (image,), write(folder / f"{name}_m.nii.gz", mask) if tumour else None, tumour)


def cohort(
    folder: Path, *, types: tuple[str | None, ...] = ("cyst", "glioma", None), each: int = 5
) -> list[Volume]:
    """``each`` patients of every type."""
    return [
        patient(folder, f"{t or 'free'}{i}", t, seed=100 * n + i)
        for n, t in enumerate(types)
        for i in range(each)
    ]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> list[Volume]:
    return cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def crops() -> Store:
    return Store(CROPS, salt="s")


@pytest.fixture(scope="module")
def whole() -> Store:
    return Store(WHOLE, salt="s")


def tasks(volumes: list[Volume], crops: Store, whole: Store) -> list[Task]:
    return [
        segmentation_task(volumes, "glioma", crops, crops=3),
        classification_task(volumes, ("glioma", "cyst"), whole),
        classification_task(volumes, ("glioma",), whole, against="rest"),
        classification_task(volumes, ("glioma",), whole, against="none"),
    ]


def test_shapes_labels_and_classes(volumes: list[Volume], crops: Store, whole: Store) -> None:
    segment, types, rest, none = tasks(volumes, crops, whole)
    drawn = segment.episode(shot=2, query=3, generator=seeded(0))
    assert tuple(drawn.support.image.shape) == (6, 1, 8, 8, 8)
    assert tuple(drawn.query.label.shape) == (9, 8, 8, 8)
    assert drawn.support.classes == ("background", "glioma")
    # two crops of three are drawn around the tumour
    assert drawn.support.shot[1] >= 4
    drawn = types.episode(shot=2, query=3, generator=seeded(0))
    assert tuple(drawn.support.image.shape) == (4, 1, 16, 16, 16)
    assert drawn.support.label.tolist() == [0, 0, 1, 1]
    assert drawn.support.shot == (2, 2)
    assert (rest.classes, none.classes) == (("rest", "glioma"), ("none", "glioma"))
    assert (len(rest.volumes), len(none.volumes)) == (15, 10)
    assert {v.tumour for v in segment.volumes} == {"glioma"}


def test_support_and_query_share_no_patient(volumes: list[Volume], crops: Store, whole: Store) -> None:
    for task in tasks(volumes, crops, whole):
        for seed in range(20):
            drawn = task.episode(shot=1 + seed % 3, query=2, generator=seeded(seed))
            assert not set(drawn.support.patients) & set(drawn.query.patients)
            assert len(set(drawn.query.patients)) == 2 * (1 if task.segments else 2)


def test_same_seed_same_episode_in_any_order_of_volumes(
    volumes: list[Volume], crops: Store, whole: Store
) -> None:
    mixed = volumes[::-1]
    for task, other in zip(tasks(volumes, crops, whole), tasks(mixed, crops, whole), strict=True):
        one = task.episode(shot=2, query=2, generator=seeded(3))
        two = other.episode(shot=2, query=2, generator=seeded(3))
        assert torch.equal(one.support.image, two.support.image)
        assert torch.equal(one.query.label, two.query.label)
        assert one.support.patients == two.support.patients


def test_series_of_one_folder_are_drawn_in_any_order_of_volumes_alike() -> None:
    folder, mask = Path("study"), Path("mask.dcm")
    some = [Volume(f"p{n}", (folder,), mask, "cyst", series=f"1.{s}") for n in range(4) for s in range(3)]
    store = Store(CROPS, salt="")
    one, two = (segmentation_task(order, "cyst", store).draw(2, seeded(1)) for order in (some, some[::-1]))
    assert one == two


def test_fewer_shots_are_a_part_of_more(volumes: list[Volume], crops: Store) -> None:
    task = segmentation_task(volumes, "glioma", crops)
    few, _ = task.support(1, seeded(5))
    more, drawn = task.support(3, seeded(5))
    assert torch.equal(few.image, more.image[:2])
    assert len({v.patient for v in drawn}) == 3
    left = task.without(drawn)
    assert {v.patient for v in left.volumes} == {v.patient for v in task.volumes} - {v.patient for v in drawn}


def test_a_patient_with_two_classes_is_left_out(volumes: list[Volume], whole: Store) -> None:
    both = [*volumes, replace(volumes[0], tumour="glioma")]
    task = classification_task(both, ("glioma", "cyst"), whole)
    assert volumes[0].patient not in {v.patient for v in task.volumes}
    assert len(task.volumes) == 9


def test_one_volume_a_patient(volumes: list[Volume], crops: Store, tmp_path: Path) -> None:
    twice = [*volumes, patient(tmp_path, "glioma0", "glioma", seed=77)]
    task = segmentation_task(twice, "glioma", crops)
    assert task.patients == 5
    drawn = task.episode(shot=2, query=3, generator=seeded(0))
    assert len(set(drawn.support.patients + drawn.query.patients)) == 5


def test_impossible_episodes_are_refused_with_the_numbers(
    volumes: list[Volume], crops: Store, whole: Store
) -> None:
    task = segmentation_task(volumes, "glioma", crops)
    with pytest.raises(EpisodeError, match=r"6 patients with 'glioma' \(4 support \+ 2 query\), found 5"):
        task.episode(shot=4, query=2, generator=seeded(0))
    with pytest.raises(EpisodeError, match="at least 1 shot"):
        task.episode(shot=0, query=2, generator=seeded(0))
    with pytest.raises(EpisodeError, match="at least 1 query"):
        task.episode(shot=1, query=0, generator=seeded(0))
    with pytest.raises(EpisodeError, match=r"6 patients.*found 5"):
        task.support(5, seeded(0))
    one = [v for v in volumes if v.patient == "glioma0"]
    with pytest.raises(EpisodeError, match=r"2 patients.*found 1"):
        segmentation_task(one, "glioma", crops).episode(shot=1, query=1, generator=seeded(0))


def test_impossible_tasks_are_refused(volumes: list[Volume], crops: Store, whole: Store) -> None:
    with pytest.raises(EpisodeError, match="Did you mean 'glioma'"):
        segmentation_task(volumes, "gliom", crops)
    with pytest.raises(EpisodeError, match="an empty cohort"):
        segmentation_task([], "glioma", crops)
    with pytest.raises(EpisodeError, match="masks of 'glioma'"):
        segmentation_task([replace(v, mask=None) for v in volumes], "glioma", crops)
    with pytest.raises(EpisodeError, match="whole=True"):
        classification_task(volumes, ("glioma", "cyst"), crops)
    with pytest.raises(EpisodeError, match="a plan of whole volumes"):
        segmentation_task(volumes, "glioma", whole)
    with pytest.raises(EpisodeError, match="two or more different classes"):
        classification_task(volumes, ("glioma",), whole)
    with pytest.raises(EpisodeError, match="two or more different classes"):
        classification_task(volumes, ("glioma", "glioma"), whole)
    with pytest.raises(EpisodeError, match="There are: cyst, glioma, none"):
        classification_task(volumes, ("glioma", "xyz"), whole)
    with pytest.raises(EpisodeError, match="against 'rest' or 'none'"):
        classification_task(volumes, ("glioma",), whole, against="all")


def source(volumes: list[Volume], store: Store, **options: object) -> TaskSource:
    return TaskSource(tuple(volumes), store, **{"shot": (1, 3), **options})  # type: ignore[arg-type]


def test_source_gives_the_same_episode_on_any_rank_and_restart(volumes: list[Volume], crops: Store) -> None:
    one, two = (
        source(volumes, crops, augment=Augment()),
        source(volumes, Store(CROPS, salt="s"), augment=Augment()),
    )
    whole_step = one.batch(3, 4)
    ranks = [two.batch(3, 4, rank=r, world=2) for r in (0, 1)]
    for i, episode in enumerate(whole_step):
        same = ranks[i % 2][i // 2]
        assert torch.equal(episode.support.image, same.support.image)
        assert torch.equal(episode.query.label, same.query.label)
        assert episode.query.patients == same.query.patients
    other = source(volumes, crops, seed=1)
    assert not torch.equal(other[0].support.image[0], one[0].support.image[0])


@pytest.mark.parametrize(
    ("plan", "spacing"),
    [
        (replace(CROPS, spacing=(1.0, 1.0, 4.0)), (1.0, 1.0, 4.0)),
        (Plan(2, (1.0, 3.0, 5.0), (8, 4), 1, slice_axis=0), (3.0, 5.0)),
    ],
    ids=["3D", "2D"],
)
def test_an_episode_is_turned_in_mm(plan: Plan, spacing: tuple[float, ...], tmp_path: Path) -> None:
    flat = plan.spatial_dims == 2
    shape = (1, 36, 20) if flat else (20, 18, 16)
    made = []
    for i in range(2):
        mask = np.ones(shape, dtype=np.uint8)
        mask[..., :8] = 0
        voxels = np.random.default_rng(i).random(shape, dtype=np.float32)
        files = [write(tmp_path / f"{i}{kind}.nii.gz", v) for kind, v in (("i", voxels), ("m", mask))]
        made.append(Volume(f"p{i}", (files[0],), files[1], "cyst"))
    store = Store(plan, salt="s")
    augment = Augment(rotate=40.0)
    task = segmentation_task(made, "cyst", store, augment=augment)
    turned = task.episode(shot=1, query=1, generator=seeded(0))
    generator = seeded(0)
    still = replace(task, augment=None).episode(shot=1, query=1, generator=generator)
    drawn = draw(augment, plan.spatial_dims, generator)
    assert torch.equal(turned.query.image, apply(drawn, still.query, spacing=spacing).image)
    assert not torch.allclose(turned.query.image, apply(drawn, still.query).image)


def test_source_never_names_what_is_held_out(volumes: list[Volume], crops: Store, whole: Store) -> None:
    held = source(volumes, crops, hold_out=("glioma",))
    assert held.types == ("cyst",)
    assert {held[i].support.classes for i in range(10)} == {("background", "cyst")}
    kept = source(volumes, whole, hold_out=("glioma",))
    assert kept.types == ("cyst", "none")
    keys = {whole.patient(v) for v in volumes if v.tumour == "glioma"}
    assert not keys & {p for i in range(10) for p in kept[i].support.patients}
    assert {kept[i].support.classes for i in range(10)} == {("cyst", "none"), ("none", "cyst")}


def test_source_draws_all_types_and_shots(volumes: list[Volume], crops: Store) -> None:
    episodes = [source(volumes, crops, query=2)[i] for i in range(40)]
    assert {e.support.classes[1] for e in episodes} == {"cyst", "glioma"}
    assert {len(e.support.image) for e in episodes} == {2, 4, 6}


@pytest.mark.parametrize("against", ["rest", "none"])
def test_source_of_one_type_against_others(volumes: list[Volume], whole: Store, against: str) -> None:
    one = source(volumes, whole, against=against, hold_out=("cyst",))
    assert one.types == ("glioma",)
    held = {whole.patient(v) for v in volumes if v.tumour == "cyst"}
    for i in range(5):
        drawn = one[i]
        assert drawn.support.classes == (against, "glioma")
        assert not held & {*drawn.support.patients, *drawn.query.patients}


def test_source_classifies_patients_of_one_type_only(volumes: list[Volume], whole: Store) -> None:
    both = [*volumes, *(replace(v, tumour="glioma") for v in volumes if v.tumour == "cyst")]
    assert source(both, whole).types == ("glioma", "none")
    with pytest.raises(EpisodeError, match="found 1"):
        source([v for v in both if v.tumour], whole)


def test_source_refuses_what_it_cannot_give(volumes: list[Volume], crops: Store, whole: Store) -> None:
    with pytest.raises(EpisodeError, match="Did you mean 'glioma'"):
        source(volumes, crops, hold_out=("gliom",))
    with pytest.raises(EpisodeError, match=r"1 type\(s\) with 7 patients each"):
        source(volumes, crops, shot=5)
    for wrong, words in (
        ({"shot": 0}, r"1 or more support patients a class.*found shot=0\. Give shot=1 or more"),
        ({"shot": (3, 2)}, r"the fewest first, found shot=\(3, 2\)\. .*shot=\(1, 5\)"),
        ({"query": 0}, r"1 or more query patients a class, found query=0\. Give query=1"),
        ({"way": 1}, r"2 or more types to tell apart, found way=1\. Give way=2"),
        ({"way": 4}, r"4 types to tell apart, found 3: cyst, glioma, none\. Give way=3 or fewer"),
    ):
        with pytest.raises(EpisodeError, match=words):
            source(volumes, whole, **wrong)
    with pytest.raises(EpisodeError, match="found 0"):
        source(volumes, crops, hold_out=("glioma", "cyst"))


def test_source_knows_at_once_whether_there_are_others(volumes: list[Volume], whole: Store) -> None:
    with pytest.raises(EpisodeError, match="wanted against 'rest' or 'none', found 'foo'"):
        source(volumes, whole, against="foo")
    tumours = [v for v in volumes if v.tumour]
    with pytest.raises(
        EpisodeError, match=r"wanted 3 patients free of every type, .*found 0\. Add such patients"
    ):
        source(tumours, whole, against="none")
    one = [v for v in tumours if v.tumour == "glioma"]
    with pytest.raises(
        EpisodeError, match=r"3 patients other than 'glioma', .*\(1 support, 2 query\), found 0"
    ):
        source(one, whole, against="rest")
    few = [*one, *[v for v in tumours if v.tumour == "cyst"][:2]]
    with pytest.raises(EpisodeError, match="found 2"):
        source(few, whole, against="rest")


def test_prefetched_episodes_are_the_same_in_the_same_order(volumes: list[Volume], crops: Store) -> None:
    one = source(volumes, crops)
    for workers, ahead in ((1, 1), (3, 5)):
        for index, episode in zip(
            (4, 2, 9, 9), prefetch(one, (4, 2, 9, 9), ahead=ahead, workers=workers), strict=True
        ):
            assert torch.equal(episode.support.image, one[index].support.image)


def test_prefetching_stops_when_closed_and_gives_errors_in_their_place(
    volumes: list[Volume], tmp_path: Path
) -> None:
    stream = prefetch(source(volumes, Store(CROPS)), iter(range(10**9)))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    broken = [replace(v, mask=tmp_path / "lost.nii.gz") if v.tumour == "cyst" else v for v in volumes]
    one = source(broken, Store(CROPS, tmp_path / "out"))
    kinds = [one.task(generator_of(0, i)).name for i in range(8)]
    first = kinds.index("cyst")
    stream = prefetch(one, range(8))
    for _ in range(first):
        next(stream)
    with pytest.raises(CohortError, match="one that cannot"):
        next(stream)


rows = st.lists(
    st.tuples(st.integers(0, 14), st.sampled_from(["cyst", "glioma", "none"]), st.integers(0, 1)),
    min_size=1,
    max_size=40,
    unique=True,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Volume]:
    folder = tmp_path_factory.mktemp("files")
    return [patient(folder, f"f{i}", "x", shape=(8, 8, 8), seed=i) for i in range(2)]


@given(rows, st.integers(1, 4), st.integers(1, 3), st.integers(0, 9), st.booleans())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cohort_gives_an_honest_episode_or_a_refusal(
    files: list[Volume],
    crops: Store,
    whole: Store,
    made: list[tuple[int, str, int]],
    shot: int,
    query: int,
    seed: int,
    segment: bool,
) -> None:
    """Patients with any volumes and types: never on both sides, never twice, never of two classes."""
    volumes = [
        replace(
            files[f],
            patient=f"p{p}",
            tumour=None if t == "none" else t,
            mask=files[f].mask if t != "none" else None,
        )
        for p, t, f in made
    ]
    names = ("glioma",) if segment else ("cyst", "glioma")
    free = {n: {v.patient for v in volumes if v.tumour == n} for n in ("cyst", "glioma")}
    if not segment:
        both = free["cyst"] & free["glioma"]
        free = {n: p - both for n, p in free.items()}
    possible = all(len(free[n]) >= shot + query for n in names)
    try:
        task = (
            segmentation_task(volumes, "glioma", crops)
            if segment
            else classification_task(volumes, names, whole)
        )
        drawn = task.episode(shot=shot, query=query, generator=seeded(seed))
    except EpisodeError:
        assert not possible
        return
    assert possible
    sides = {"support": set(drawn.support.patients), "query": set(drawn.query.patients)}
    assert not sides["support"] & sides["query"]
    assert (len(sides["support"]), len(sides["query"])) == (shot * len(names), query * len(names))
    store = crops if segment else whole
    for n, name in enumerate(names):
        keys = {store.patient(replace(files[0], patient=p)) for p in free[name]}
        of_class = [
            p
            for side in (drawn.support, drawn.query)
            for p, label in zip(side.patients, side.label, strict=True)
            if segment or int(label) == n
        ]
        assert set(of_class) <= keys
