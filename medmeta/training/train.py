"""From cohorts to a run: plan, store, optional supervised warm start, outer loop, folder."""

from __future__ import annotations

import contextlib
import importlib.metadata
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from medmeta.episodes import Augment, TaskSource, classification_task, generator_of, segmentation_task
from medmeta.errors import nearest
from medmeta.learners import Learner, create_learner
from medmeta.learners.tuning import score
from medmeta.networks import build, encoder, lesion_encoder, unet
from medmeta.training.checkpoint import RunError
from medmeta.training.outer import Schedule, Source, meta_train, on_device, own_device
from medmeta.training.ranks import Ranks
from medmeta.training.run import FORMAT, Folder, Run, open_run, read_config
from medmeta.volumes import Cohort, Plan, Store, Volume, make_plan
from medmeta.volumes import hold_out as hold_out_types
from medmeta.volumes.names import same_types
from medmeta.volumes.progress import Track, silent

TASKS = ("segmentation", "classification")


@dataclass(frozen=True)
class Recipe:
    """What to train, and how; the defaults suit a few minutes on two cores.

    Args:
        task: ``"segmentation"`` or ``"classification"``.
        learner: a name of :func:`medmeta.learner_names`.
        options: of the learner.
        network: specification of the backbone; None takes a small UNet or encoder.
        schedule: of the outer loop.
        warm: of ordinary supervised pre-training before it, None for none.
        shot: fewest and most support patients a class.
        query: query patients a class.
        way: classes an episode when classifying.
        against: ``"rest"`` tells one type from all others, ``"none"`` from the tumour-free, None types apart.
        crops: pieces a patient when segmenting.
        spacing: mm to work at, the cohort's median by default.
        patch: voxels of a crop, or of a whole volume or lesion when classifying.
        lesion: classify outlined lesions with so many mm around them; None classifies whole scans.
        validate_on: types for early stopping, neither trained on nor held out.
        augment: of training episodes; none for a learner of whole scans, into which it would move their
            surroundings.
        seed: everything random is derived from it.
    """

    task: str = "segmentation"
    learner: str = "proto-maml"
    options: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] | None = None
    schedule: Schedule = field(default_factory=Schedule)
    warm: Schedule | None = None
    shot: tuple[int, int] = (1, 5)
    query: int = 2
    way: int = 2
    against: str | None = None
    crops: int = 2
    spacing: tuple[float, float, float] | None = None
    patch: tuple[int, ...] | None = None
    lesion: float | None = None
    validate_on: tuple[str, ...] = ()
    augment: Augment | None = field(default_factory=Augment)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("shot", "spacing", "patch", "validate_on"):
            if isinstance(getattr(self, name), list):  # as JSON has them
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.task not in TASKS:
            raise RunError("a task", found=repr(self.task), cure=nearest(self.task, TASKS))
        if self.lesion is not None and self.task != "classification":
            raise RunError(
                "lesions to classify", found=f"the task {self.task}", cure="Leave the lesion option out."
            )


def train(
    cohorts: Cohort | Sequence[Cohort],
    recipe: Recipe | None = None,
    *,
    out: str | Path,
    hold_out: Sequence[str] = (),
    store: Store | None = None,
    cache: str | Path | None = None,
    resume: bool = False,
    device: torch.device | None = None,
    track: Track = silent,
) -> Run:
    """Meta-train a learner on cohorts, some types held out from every stage, and leave a run folder.

    Args:
        cohorts: what to train on. A patient with held-out types alone is left out; where patients have both
            (one mask of several structures), half of them are kept for judging.
        recipe: what and how; None takes the defaults.
        out: the folder to write; refused where it exists, unless ``resume``.
        hold_out: types that no stage sees.
        store: prepared volumes, with their plan; None prepares them here.
        cache: folder to keep prepared volumes in, for cohorts that do not fit in memory.
        resume: go on with an interrupted run of the same recipe.
        device: to train on; None takes this process's GPU, or the CPU.
        track: shows progress.

    Raises:
        RunError: where ``out`` exists, or the loop must stop (see :func:`meta_train`).
        EpisodeError: where types or patients do not suffice.
        VolumeError: where a file cannot be read right.
    """
    recipe = recipe or Recipe()
    folder = Path(out)
    volumes, validation = split(cohorts, recipe, hold_out)
    _no_other_name({v.tumour for v in (*volumes, *validation) if v.tumour}, hold_out)
    ranks = Ranks.join()
    with _claimed(folder, resume, ranks):
        if store is None:
            plan = plan_for(volumes, recipe)
            store = Store(plan, cache, salt=_salt(folder, recipe, resume, ranks))
            store.fill([v for v in (*volumes, *validation) if plan.takes(v)], track=track)
        source = TaskSource(
            volumes,
            store,
            seed=recipe.seed,
            shot=recipe.shot,
            query=recipe.query,
            way=recipe.way,
            crops=recipe.crops,
            augment=None if _whole_scans(recipe) else recipe.augment,
            against=recipe.against,
        )
        network = dict(recipe.network or _network(recipe, store.plan))
        torch.manual_seed(recipe.seed)
        learner = create_learner(recipe.learner, build(network), **_options(recipe))
        warm = create_learner("pretrain-finetune", build(network), **_warm_options(recipe, source))
        config = _config(recipe, learner, warm, network, store, source, hold_out)
        seen = (*volumes, *validation)
        config["seen"] = sorted({store.patient(v) for v in seen})
        config["seen_voxels"] = sorted({store.voxels(v) for v in seen})
        _same_recipe(folder, config, resume)
        keeper = Folder(folder, writes=ranks.rank == 0)
        keeper.start(config)
        stage = _Stage(source, ranks, keeper, track, resume, device or own_device())
        began = time.monotonic()
        if recipe.warm is not None:
            stage.pretrain(warm, recipe.warm)
            _start_from(learner, warm)
        validate = _validation(validation, recipe, store) if recipe.validate_on else None
        stage.run(learner, recipe.schedule, validate)
        keeper.finish(_module(learner))
        keeper.start({**config, "seconds": round(time.monotonic() - began, 1)})
        ranks.wait()
        ranks.leave()
        return open_run(folder)


def _no_other_name(types: Collection[str], hold_out: Sequence[str]) -> None:
    """Refuse a held-out type that is there under another name, too, as in another cohort."""
    for name in hold_out:
        others = same_types(name, types)
        if others:
            raise RunError(
                f"no type that is {name!r} under another name",
                found=f"{others[0]!r}, the same but for case or spelling",
                cure=f"Hold out {others[0]!r} too; where they are two types, give one of them another name.",
            )


@dataclass
class _Stage:
    """One training in a folder: the same source, processes and progress for its parts."""

    source: TaskSource
    ranks: Ranks
    keeper: Folder
    track: Track
    resume: bool
    where: torch.device

    def pretrain(self, warm: Learner, schedule: Schedule) -> None:
        """Ordinary supervised training; done once, a resumed run takes what is there."""
        from medmeta.training.checkpoint import read_tensors, write_tensors

        file = self.keeper.path / "pretrained.safetensors"
        if self.resume and file.is_file():
            _module(warm).load_state_dict(read_tensors(file)[0])
            return
        far = _Shifted(self.source, 10**9)  # numbers that the outer loop does not reach
        keeper = Folder(self.keeper.path, writes=self.keeper.writes, stage="pretraining")
        self._loop(warm, far, schedule, keeper)
        keeper.close()
        if self.keeper.writes:
            write_tensors(file, _module(warm).state_dict())
        self.ranks.wait()

    def run(self, learner: Learner, schedule: Schedule, validate: Callable[[Learner], float] | None) -> None:
        """The outer loop, from the start or from where it was."""
        again = getattr(learner, "recurring", None) if self.source.segments else None
        source = self.source if again is None else _Recurring(self.source, again)
        self._loop(learner, source, schedule, self.keeper, validate)

    def _loop(
        self,
        learner: Learner,
        source: Source,
        schedule: Schedule,
        keeper: Folder,
        validate: Callable[[Learner], float] | None = None,
    ) -> None:
        module = _module(learner).to(self.where)
        optimiser = torch.optim.Adam(module.parameters(), lr=schedule.rate)
        progress = None
        if self.resume and keeper.state.is_file():
            progress = keeper.restore(module, optimiser)
        meta_train(
            learner,
            on_device(source, self.where),
            schedule,
            keeper=keeper,
            validate=validate,
            optimiser=optimiser,
            progress=progress,
            track=self.track,
            ranks=self.ranks,
            seed=self.source.seed,
        )
        module.cpu()


@dataclass(frozen=True)
class _Shifted:
    """The same stream, further on."""

    source: TaskSource
    by: int

    def __getitem__(self, index: int) -> Any:
        return self.source[self.by + index]


@dataclass(frozen=True)
class _Recurring:
    """The first episodes of the stream, again and again."""

    source: TaskSource
    number: int

    def __getitem__(self, index: int) -> Any:
        return self.source[index % self.number]


def _module(learner: Learner) -> torch.nn.Module:
    assert isinstance(learner, torch.nn.Module)
    return learner


def split(
    cohorts: Cohort | Sequence[Cohort], recipe: Recipe, held: Sequence[str]
) -> tuple[tuple[Volume, ...], tuple[Volume, ...]]:
    """Part the volumes to train on and those to validate on; who is left is for judging.

    Raises:
        CohortError: where a type is not there, or a side would be empty.
    """
    many = [cohorts] if isinstance(cohorts, Cohort) else list(cohorts)
    volumes = tuple(v for cohort in many for v in cohort.volumes)
    if held:
        volumes, _ = hold_out_types(volumes, held, generator_of(recipe.seed, 2))
    if not recipe.validate_on:
        return volumes, ()
    return hold_out_types(volumes, recipe.validate_on, generator_of(recipe.seed, 3), share=0.3)


def plan_for(volumes: Sequence[Volume], recipe: Recipe) -> Plan:
    """The plan that the recipe asks for, from the volumes to train on.

    Raises:
        CohortError: where lesions are to be classified and no volume outlines one.
    """
    if recipe.lesion is not None:
        volumes = [v for v in volumes if v.mask is not None and v.tumour is not None]
    return make_plan(
        volumes,
        spacing=recipe.spacing,
        patch=recipe.patch,
        whole=recipe.task == "classification",
        lesion=recipe.lesion,
        cover=_whole_scans(recipe),
    )


def _whole_scans(recipe: Recipe) -> bool:
    """Whether the learner looks at scans as a whole: then what lies around a scan must stay as it is."""
    return recipe.task == "segmentation" and getattr(_probe(recipe), "whole_scans", False)


def _probe(recipe: Recipe) -> Learner:
    """A learner of the recipe's kind on a network of no account, to ask what it is like."""
    return create_learner(recipe.learner, torch.nn.Linear(1, 1))


def _salt(folder: Path, recipe: Recipe, resume: bool, ranks: Ranks) -> str | None:
    """The secret of the patient keys: an earlier one when going on, one that ranks agree on, or fresh."""
    if resume:
        return str(read_config(folder)["salt"])
    return f"seed {recipe.seed}" if ranks.world > 1 else None


@contextlib.contextmanager
def _claimed(folder: Path, resume: bool, ranks: Ranks) -> Iterator[None]:
    """Make the folder; one that exists is never written over, and one without a file is not left behind."""
    if ranks.rank == 0:
        if folder.exists() and any(folder.iterdir()) and not resume:
            raise RunError(
                f"a folder to write that does not exist: {folder.name}",
                found="one with files in it",
                cure="Give another --out, or --resume to go on with it.",
            )
        if resume and not (folder / "config.json").is_file():
            raise RunError("a run to go on with", found="none there", cure="Train without --resume.")
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if ranks.rank == 0:
            with contextlib.suppress(OSError):  # what holds a file stays
                folder.rmdir()
        raise


def _same_recipe(folder: Path, config: Mapping[str, Any], resume: bool) -> None:
    if not resume:
        return
    before = read_config(folder)
    different = [k for k in config if k not in ("versions", "seconds") and before.get(k) != _plain(config[k])]
    if different:
        raise RunError(
            "the recipe that the run was begun with",
            found=f"another {', '.join(different)}",
            cure="Resume with the same options, or train into another folder.",
        )


def _plain(value: Any) -> Any:
    import json

    return json.loads(json.dumps(value))


def _network(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    if plan.lesion is not None:
        return lesion_encoder(plan.inputs, plan.patch)
    make = unet if recipe.task == "segmentation" else encoder
    return make(plan.spatial_dims, plan.inputs)


def _options(recipe: Recipe) -> dict[str, Any]:
    """The learner's options; a learned head that nothing was said of has the task's number of classes."""
    options = dict(recipe.options)
    asked = recipe.task == "classification" and recipe.way != 2 and "way" not in options
    if asked and _probe(recipe).options.get("way") is not None:
        options["way"] = recipe.way
    return options


def _warm_options(recipe: Recipe, source: TaskSource) -> dict[str, Any]:
    tuned = {"steps": 10}  # better than 30 or 100 on types held out of the synthetic cohort, at 1 and 5 shots
    return (
        tuned
        if recipe.task == "segmentation"
        else {**tuned, "classes": (*((recipe.against,) if recipe.against else ()), *source.types)}
    )


def _start_from(learner: Learner, warm: Learner) -> None:
    """Give the learner the pre-trained backbone, and the head where both have the same."""
    before = _module(warm).state_dict()
    own = _module(learner).state_dict()
    shared = {n: w for n, w in before.items() if n in own and own[n].shape == w.shape and n != "outer_steps"}
    _module(learner).load_state_dict({**own, **shared})


def _validation(volumes: Sequence[Volume], recipe: Recipe, store: Store) -> Callable[[Learner], float]:
    """Score on the validation types: the mean over 4 episodes a type, always the same ones."""
    if recipe.task == "segmentation":
        tasks = [segmentation_task(volumes, name, store, crops=recipe.crops) for name in recipe.validate_on]
    else:
        tasks = [classification_task(volumes, recipe.validate_on, store)]
    shot = recipe.shot[0]
    episodes = [
        task.episode(shot=shot, query=recipe.query, generator=generator_of(recipe.seed, 1, i))
        for task in tasks
        for i in range(4)
    ]

    def validate(learner: Learner) -> float:
        return sum(score(learner.adapt(e.support), e.query) for e in episodes) / len(episodes)

    return validate


def _config(
    recipe: Recipe,
    learner: Learner,
    warm: Learner,
    network: Mapping[str, Any],
    store: Store,
    source: TaskSource,
    hold_out: Sequence[str],
) -> dict[str, Any]:
    packages = ("medmeta", "torch", "monai", "numpy")
    return {
        "format": FORMAT,
        "task": recipe.task,
        "learner": {"name": learner.name, "options": dict(learner.options)},
        "warm": dict(warm.options),
        "network": dict(network),
        "plan": store.plan.to_json(),
        "salt": store.salt,
        "types": list(source.types),
        "held_out": list(hold_out),
        "validated_on": list(recipe.validate_on),
        "recipe": asdict(replace(recipe, options={}, network=None)),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
