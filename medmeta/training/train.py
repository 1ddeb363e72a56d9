"""From cohorts to a run: plan, store, optional supervised warm start, outer loop, folder."""

from __future__ import annotations

import contextlib
import importlib.metadata
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from medmeta.episodes import TaskSource
from medmeta.learners import Learner, create_learner
from medmeta.networks import build
from medmeta.training.checkpoint import RunError
from medmeta.training.outer import module_of, own_device
from medmeta.training.ranks import Ranks
from medmeta.training.recipe import Recipe, network_of, options_of, plan_for, split, warm_options, whole_scans
from medmeta.training.run import FORMAT, Folder, Run, open_run, read_config
from medmeta.training.stage import Stage, start_from
from medmeta.training.validation import Validation
from medmeta.volumes import Cohort, Plan, Store, Volume
from medmeta.volumes.names import same_types
from medmeta.volumes.progress import Track, silent


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
        LearnerError: where the learner cannot be made, or cannot learn from such episodes.
        VolumeError: where a file cannot be read right.
    """
    recipe = recipe or Recipe()
    folder = Path(out)
    volumes, validation = split(cohorts, recipe, hold_out)
    trained, validated = (sorted({v.tumour for v in vs if v.tumour}) for vs in (volumes, validation))
    _no_other_name("Hold out", hold_out, [*trained, *validated])
    _no_other_name("Validate on", recipe.validate_on, trained)
    ranks = Ranks.join()
    with _claimed(folder, resume, ranks):
        fills = store is None
        store = store or _store(plan_for(volumes, recipe), cache, _salt(folder, resume), ranks)
        source = _source(volumes, store, recipe)
        judged = Validation(validation, recipe, store) if recipe.validate_on else None
        network = dict(recipe.network or network_of(recipe, store.plan))
        torch.manual_seed(recipe.seed)
        learner = create_learner(recipe.learner, build(network), **options_of(recipe, store.plan))
        warm = create_learner("pretrain-finetune", build(network), **warm_options(recipe, source))
        if fills:  # after all that may be refused, for it can take hours
            store.fill([v for v in (*volumes, *validation) if store.plan.takes(v)], track=track)
        config = {
            **_config(recipe, learner, warm, network, store, source, hold_out),
            **_seen((*volumes, *validation), store),
        }
        _same_recipe(folder, config, resume)
        keeper = Folder(folder, writes=ranks.rank == 0)
        stage = Stage(source, ranks, keeper, track, resume, device or own_device())
        validate = judged.scorer() if judged else None
        if recipe.warm is not None:
            stage.rehearse(learner, recipe.schedule)
        with _timed(keeper, config, read_config(folder).get("seconds", 0.0) if resume else 0.0):
            if recipe.warm is not None:
                stage.pretrain(warm, recipe.warm)
                start_from(learner, warm)
            stage.run(learner, recipe.schedule, validate)
            keeper.finish(module_of(learner))
        ranks.wait()
        ranks.leave()
        return open_run(folder)


@contextlib.contextmanager
def _timed(keeper: Folder, config: Mapping[str, Any], before: float) -> Iterator[None]:
    """Keep the configuration and the seconds that training took, those of stopped processes before it too."""
    began = time.monotonic()

    def keep() -> None:
        keeper.start({**config, "seconds": round(before + time.monotonic() - began, 1)})

    keep()
    try:
        yield
    except BaseException:
        with contextlib.suppress(RunError):  # what stopped the training is what is said
            keep()
        raise
    keep()


def _no_other_name(what: str, apart: Sequence[str], types: Collection[str]) -> None:
    """Refuse a type to keep apart that is there under another name, too, as in another cohort."""
    for name in apart:
        others = same_types(name, types)
        if others:
            raise RunError(
                f"no type that is {name!r} under another name",
                found=f"{others[0]!r}, the same but for case or spelling",
                cure=f"{what} {others[0]!r} too; where they are two types, give one of them another name.",
            )


def _salt(folder: Path, resume: bool) -> str | None:
    """The secret of the patient keys of the run to go on with; None where one is to be drawn."""
    return str(read_config(folder)["salt"]) if resume else None


def _store(plan: Plan, cache: str | Path | None, salt: str | None, ranks: Ranks) -> Store:
    """An empty store with one secret for all processes: the first one's, where each has drawn its own."""
    own = Store(plan, cache, salt=salt)
    agreed = ranks.first(own.salt)
    return own if own.salt == agreed else Store(plan, cache, salt=agreed)


@contextlib.contextmanager
def _claimed(folder: Path, resume: bool, ranks: Ranks) -> Iterator[None]:
    """Make the folder; one that exists is never written over, and one without a file is not left behind."""
    if ranks.rank == 0:
        try:
            _take(folder, resume)
        except OSError as error:
            raise RunError(
                f"a folder that can be written: {folder.name[:80]}",
                found=error.strerror or type(error).__name__,
                cure="Give another --out, or the right to write there.",
            ) from error
    try:
        yield
    except BaseException:
        if ranks.rank == 0:
            with contextlib.suppress(OSError):  # what holds a file stays
                folder.rmdir()
        raise


def _take(folder: Path, resume: bool) -> None:
    """Make the folder, and refuse one that is not for this run.

    Raises:
        RunError: where it has files and none are to be gone on with, or the other way round.
        OSError: where it cannot be made or written.
    """
    if folder.exists() and any(folder.iterdir()) and not resume:
        raise RunError(
            f"a folder to write that does not exist: {folder.name}",
            found="one with files in it",
            cure="Give another --out, or --resume to go on with it.",
        )
    if resume and not (folder / "config.json").is_file():
        raise RunError("a run to go on with", found="none there", cure="Train without --resume.")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):  # said now, not after hours of preparing
        pass


def _same_recipe(folder: Path, config: Mapping[str, Any], resume: bool) -> None:
    if not resume:
        return
    before, now = read_config(folder), _plain(config)
    # a run that was begun before something was kept goes on all the same: "drawn" follows from the types, and
    # options that a learner did not have then are what nobody asked for
    aside = {"versions", "seconds"} | ({"drawn"} - before.keys())
    known = before.get("learner", {}).get("options", {})
    now["learner"]["options"] = {k: v for k, v in now["learner"]["options"].items() if k in known}
    different = [k for k in now if k not in aside and before.get(k) != now[k]]
    if "salt" in different:  # and with it every key of a patient, which tells nothing then
        raise RunError(
            "a store with the salt that the run was begun with",
            found="another one",
            cure="Make it with Store(plan, salt=...) and the salt of the run's config.json, or give none.",
        )
    if different:
        same = "cohort and options" if "seen" in different or "seen_voxels" in different else "options"
        raise RunError(
            "the recipe that the run was begun with",
            found=f"another {', '.join(different)}",
            cure=f"Resume with the same {same}, or train into another folder.",
        )


def _plain(value: Any) -> Any:
    import json

    return json.loads(json.dumps(value))


def _source(volumes: Sequence[Volume], store: Store, recipe: Recipe) -> TaskSource:
    return TaskSource(
        tuple(volumes),
        store,
        seed=recipe.seed,
        shot=recipe.shot,
        query=recipe.query,
        way=recipe.way,
        crops=recipe.crops,
        augment=None if whole_scans(recipe) else recipe.augment,
        against=recipe.against,
    )


def _seen(volumes: Sequence[Volume], store: Store) -> dict[str, Any]:
    """Who was seen, by keys that tell nothing of them: what proves that a patient is new."""
    return {
        "seen": sorted({store.patient(v) for v in volumes}),
        "seen_voxels": sorted({store.voxels(v) for v in volumes}),
    }


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
        "drawn": list(source.drawn),
        "held_out": list(hold_out),
        "validated_on": list(recipe.validate_on),
        "recipe": asdict(replace(recipe, options={}, network=None)),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
