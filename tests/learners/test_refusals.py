"""What bad input gets: one error each that says wanted, found and cure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medmeta.episodes.examples import Episode, EpisodeError, Examples
from medmeta.errors import MedmetaError
from medmeta.learners import LearnerError, create_learner, learner_names, load_weights, tune_rates
from medmeta.networks import NetworkError, build, encoder, feature_size, group_norm, unet
from tests.learners.tasks import conv, episode, lesions, mlp, pictures, vectors


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mamll", {}, "Did you mean 'maml'"),
        ("maml", {"setps": 3}, "Did you mean 'steps'"),
        ("prototypical", {"distanc": "cosine"}, "Did you mean 'distance'"),
        ("prototypical", {"distance": "cosin"}, "Did you mean 'cosine'"),
        ("siamese", {"metric": "contrast"}, "Did you mean 'contrastive'"),
        ("maml", {"rate": -0.1}, "wanted a positive learning rate, found rate=-0.1"),
        ("maml", {"rate": float("nan")}, "positive learning rate"),
        ("maml", {"steps": -1}, "zero or more inner steps"),
        ("maml", {"way": 1}, "two classes or more"),
        ("maml", {"head": "prototype"}, "Did you mean 'prototypes'"),
        ("maml", {"order": "third"}, "There are: first"),
        ("maml", {"backend": "vmap"}, "There are: auto, batched, compiled, loop, recompute"),
        ("maml", {"precision": "bf61"}, "Did you mean 'bf16'"),
        ("maml", {"anneal": -1}, "wanted zero or more outer steps of annealing, found anneal=-1"),
        ("proto-maml", {"head": "learned"}, "found head='learned' without way or classes. Give way=2"),
        ("siamese", {"metric": "contrastive", "margin": 0.0}, "wanted a positive margin, found margin=0.0"),
        ("prototypical", {"scale": 0.0}, "wanted a positive number, found 0.0"),
        ("imaml", {"proximity": 0}, "a pull back to the start"),
        (
            "meta-sgd",
            {"classes": ["cyst", "tumour"]},
            "with classes. Give rates='layer'",
        ),
        ("ridge", {"penalty": -1.0}, "wanted a positive number"),
        ("ridge", {"penalty": float("inf")}, "wanted a positive number, found inf"),
        ("imaml", {"proximity": float("inf")}, "wanted a pull of zero or more, found proximity=inf"),
        ("maml", {"feature": 0}, "wanted one feature or more, found feature=0"),
        ("maml", {"steps": 2.5}, "wanted a whole number for steps, found 2.5"),
        ("maml", {"rate": "fast"}, "wanted a number for rate, found 'fast'"),
        ("maml", {"adapt_steps": "10"}, "wanted a whole number or None for adapt_steps, found '10'"),
        ("refined-ridge", {"mirrors": 1}, "wanted true or false for mirrors, found 1"),
        ("refined-ridge", {"trees": True}, "wanted a whole number for trees, found True"),
        (
            "refined-ridge",
            {"rate": float("inf")},
            "a positive rate, found steps=30, folds=2, views=4, rate=inf",
        ),
        ("mann", {"way": 0}, "1 or more of way, slots and width, a decay from 0 to 1, found way=0"),
        ("mann", {"decay": 1.5}, "decay=1.5"),
        ("relation", {"hidden": 0}, "wanted 1 or more hidden units, found hidden=0"),
        ("pretrain-linear", {"classes": ["cyst", "cyst"]}, "names of classes once each, found cyst, cyst"),
    ],
)
def test_options_that_cannot_be(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(LearnerError) as caught:
        create_learner(name, mlp(), **options)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["maml", "proto-maml", "prototypical", "mann"])
def test_running_batch_statistics_are_refused_with_the_cure(name: str) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    with pytest.raises(LearnerError, match=r"first '1'.*group_norm\(network\)"):
        create_learner(name, network)
    create_learner(name, group_norm(network), feature=4) if name == "mann" else create_learner(
        name, group_norm(network)
    )


@pytest.mark.parametrize("name", ["proto-maml", "prototypical", "in-context"])
def test_features_of_several_depths_are_refused_with_the_cure(name: str) -> None:
    spec = {
        "_target_": "monai.networks.nets.DynUNet",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 4,
        "kernel_size": [3, 3, 3, 3],
        "strides": [1, 2, 2, 2],
        "upsample_kernel_size": [2, 2, 2],
        "filters": [4, 4, 4, 4],
        "norm_name": "instance",
    }
    words = r"last layer alone, found DynUNet with deep_supervision=True.*deep_supervision=False"
    with pytest.raises(LearnerError, match=words):
        create_learner(name, build({**spec, "deep_supervision": True}))
    create_learner(name, build(spec)).adapt(lesions(side=16))


def test_more_ways_than_the_head_has_rows() -> None:
    with pytest.raises(LearnerError, match=r"tasks of 2 classes.*found 3.*way=3"):
        create_learner("maml", mlp()).adapt(vectors())
    one = Examples(vectors(way=1).image, vectors(way=1).label, ("tumour",))
    with pytest.raises(LearnerError, match=r"found 1: tumour\. Create it with head='prototypes'"):
        create_learner("maml", mlp()).adapt(one)
    with pytest.raises(LearnerError, match=r"at most 2 classes.*way=3"):
        create_learner("mann", mlp(), way=2).adapt(vectors())


@pytest.mark.parametrize("name", learner_names())
def test_a_class_without_an_example(name: str) -> None:
    support = vectors()
    empty = Examples(support.image, support.label.clamp(max=1), support.classes)
    options = {"way": 3} if name in ("mann", "maml") else {}
    with pytest.raises(LearnerError, match=r"at least one labelled example of each class.*none of cyst"):
        create_learner(name, mlp(), **options).adapt(empty)


@pytest.mark.parametrize("name", learner_names())
def test_an_empty_support_or_query(name: str) -> None:
    task, nobody = vectors(way=2), torch.zeros(0, dtype=torch.int64)
    empty = Examples(torch.zeros(0, 5), nobody, task.classes)
    options = {"classes": task.classes} if name.startswith("pretrain") else {}
    learner = create_learner(name, mlp(), **options)
    words = r"one labelled example of each class \(background, tumour\), found none of background, tumour"
    with pytest.raises(LearnerError, match=words):
        learner.adapt(empty)
    with pytest.raises(LearnerError, match=words):
        learner.backward([Episode(empty, task)], scale=1.0)
    with pytest.raises(LearnerError, match=r"a query of one example or more, found none\. Draw query=1"):
        learner.backward([Episode(task, empty)], scale=1.0)


@pytest.mark.parametrize("name", ["proto-maml", "prototypical", "mann"])
def test_a_lazy_layer_that_no_image_has_been_through(name: str) -> None:
    network = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(LearnerError, match=r"0\.weight of a lazy layer.*Run it once on an image"):
        create_learner(name, network, **({"feature": 4} if name == "mann" else {}))
    network(torch.zeros(1, 5))
    create_learner(name, network).adapt(vectors(way=2))


def test_fine_tuning_that_runs_away() -> None:
    learner = create_learner("refined-ridge", build(unet(2, 1, base=4)), rate=1e30, steps=4, folds=0)
    with pytest.raises(LearnerError, match=r"finite weights after fine-tuning.*rate 1e\+30\. Lower rate"):
        learner.adapt(lesions())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_support_that_is_not_finite(value: float) -> None:
    image = vectors().image.clone()
    image[0, 0] = value
    words = r"wanted finite images, found NaN or infinite voxels\. Repair or drop the volume"
    with pytest.raises(EpisodeError, match=words):
        Examples(image, vectors().label, vectors().classes)


@pytest.mark.parametrize("name", ["matching", "relation", "siamese", "mann"])
def test_a_learner_asked_for_a_task_it_cannot_do_names_those_that_can(name: str) -> None:
    learner = create_learner(name, build(unet(2, 1, base=4)))
    for ask in (lambda: learner.adapt(lesions()), lambda: learner.backward([episode(lesions)], scale=1.0)):
        with pytest.raises(LearnerError, match=r"can segment.*proto-maml.*prototypical"):
            ask()


def test_a_network_off_the_grid_cannot_segment() -> None:
    with pytest.raises(NetworkError, match=r"on the voxel grid.*found an output of shape"):
        create_learner("prototypical", build(encoder(2, 1))).adapt(lesions(side=32))


def test_a_wrong_number_of_features() -> None:
    with pytest.raises(LearnerError, match=r"a network of 9 features.*found 4.*feature=4"):
        create_learner("maml", mlp(), feature=9, way=3).adapt(vectors())
    with pytest.raises(NetworkError, match="number of features"):
        feature_size(nn.Sequential(nn.PReLU()))


class Named(nn.Module):
    """A user's own network: what comes last in it is not what it gives, and it may give it by name."""

    def __init__(self, *, by_name: bool = False) -> None:
        super().__init__()
        self.body, self.aside, self.by_name = nn.Linear(5, 6), nn.Linear(3, 4), by_name

    def forward(self, image: Tensor) -> Any:
        return {"out": self.body(image)} if self.by_name else self.body(image)


@pytest.mark.parametrize("name", ["maml", "relation", "siamese", "mann", "in-context"])
def test_a_number_of_features_that_no_layer_tells(name: str) -> None:
    options = {"way": 3} if name in ("mann", "maml") else {}
    learner = create_learner(name, Named(), **options)
    for ask in (
        lambda: learner.adapt(vectors()),
        lambda: learner.backward([episode(vectors)], scale=1.0),
    ):
        with pytest.raises(LearnerError, match=r"a network of 4 features.*found 6.*feature=6"):
            ask()
    create_learner(name, Named(), feature=6, **options).adapt(vectors())


@pytest.mark.parametrize("name", ["proto-maml", "prototypical"])
def test_features_by_name(name: str) -> None:
    with pytest.raises(
        NetworkError, match=r"a tensor of features.*found a dict.*forward returns that tensor"
    ):
        create_learner(name, Named(by_name=True)).adapt(vectors())


class Halving(nn.Module):
    """Writes into what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image *= 0.5
        return self.layer(image)


@pytest.mark.parametrize(
    ("name", "options"), [*((n, {}) for n in learner_names("segmentation")), ("body-trees", {"deep": True})]
)
def test_a_network_that_writes_into_the_support(name: str, options: dict[str, Any]) -> None:
    """It sees other images at each step; whoever looks at voxels alone does not mind."""
    support = lesions()
    known = {"way": 2, "classes": support.classes} if name.startswith("pretrain") else {}
    learner = create_learner(name, Halving(), **options, **known)
    if name in ("ranked-regions", "body-trees") and not options:
        learner.adapt(support)
    else:
        with pytest.raises(NetworkError, match="leaves its input as it is"):
            learner.adapt(support)
    if name not in ("ranked-regions", "body-trees"):
        with pytest.raises(MedmetaError, match=r"leaves its input as it is|something to meta-learn"):
            learner.backward([Episode(support, support)], scale=1.0)


@pytest.mark.parametrize("backend", ["loop", "recompute", "batched"])
def test_a_network_that_writes_into_the_pictures_of_a_task(backend: str) -> None:
    task = episode(pictures)
    learner = create_learner(
        "maml", nn.Sequential(Halving(), nn.Flatten()).double(), feature=1024, backend=backend
    )
    with pytest.raises(NetworkError, match="leaves its input as it is"):
        learner.backward([task, task], scale=1.0)


def test_steps_that_run_away() -> None:
    with pytest.raises(LearnerError, match=r"finite weights.*Lower rate"):
        create_learner("maml", mlp(), way=3, rate=1e200, adapt_steps=30).adapt(vectors())


def test_weights_of_another_network() -> None:
    one, other = create_learner("maml", mlp()), create_learner("maml", mlp(size=7))
    with pytest.raises(LearnerError, match=r"weights of this maml.*network.0.weight.*same network"):
        load_weights(one, other.state_dict())
    with pytest.raises(LearnerError, match="missing"):
        load_weights(one, create_learner("prototypical", mlp()).state_dict())
    broken = {n: w * float("nan") if w.is_floating_point() else w for n, w in one.state_dict().items()}
    with pytest.raises(LearnerError, match="finite weights"):
        load_weights(one, broken)
    load_weights(one, create_learner("maml", mlp(seed=4)).state_dict())


def test_nothing_to_meta_train_from_scratch() -> None:
    with pytest.raises(LearnerError, match=r"something to meta-learn, found finetune-scratch.*Call adapt"):
        create_learner("finetune-scratch", mlp()).backward([episode(vectors)], scale=1.0)


def test_an_ordinary_classifier_must_be_told_its_classes() -> None:
    with pytest.raises(LearnerError, match="names of all training classes"):
        create_learner("pretrain-linear", mlp()).backward([episode(vectors)], scale=1.0)
    told = create_learner("pretrain-linear", mlp(), classes=["background", "tumour"])
    with pytest.raises(LearnerError, match="classes among background, tumour"):
        told.backward([episode(vectors)], scale=1.0)
    rowless = create_learner("pretrain-finetune", conv(), head="prototypes")
    with pytest.raises(LearnerError, match="names of all training classes"):
        rowless.backward([episode(lesions)], scale=1.0)


def test_tuning_needs_tasks() -> None:
    with pytest.raises(LearnerError, match="validation"):
        tune_rates(create_learner("finetune-scratch", mlp()), [])


def test_tuning_finds_the_rate_that_learns() -> None:
    learner = create_learner("finetune-scratch", mlp())
    task = Episode(vectors(), vectors())
    tuned = tune_rates(learner, [task], rates=[1e-9, 1e-2], steps=[1, 30])
    assert (tuned.options["rate"], tuned.options["adapt_steps"]) == (1e-2, 30)
    assert learner.options["adapt_steps"] is None
    untouched = create_learner("prototypical", mlp())
    assert tune_rates(untouched, [episode(vectors)]) is untouched


def test_tuning_passes_over_rates_that_run_away() -> None:
    learner = create_learner("maml", mlp(), way=3)
    tuned = tune_rates(learner, [episode(vectors)], rates=[1e200, 0.1], steps=[5, 20])
    assert tuned.options["rate"] == 0.1
    with pytest.raises(LearnerError, match="a rate that stays finite"):
        tune_rates(learner, [episode(vectors)], rates=[1e200], steps=[20])


def test_batching_says_why_not(caplog: pytest.LogCaptureFixture) -> None:
    tasks = [episode(pictures, n=2), Episode(pictures(4, seed=5), pictures(2, seed=6))]
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh())
    learner = create_learner("proto-maml", network, backend="batched")
    learner.backward(tasks, scale=1.0)
    assert "their shots or sizes differ" in caplog.text
