"""Laws every learner keeps, whatever its name."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from threading import Event

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medmeta.episodes.examples import Episode, Examples
from medmeta.learners import (
    Learner,
    LearnerError,
    comparing,
    create_learner,
    gradient,
    learner_names,
    plain_network,
    prototype,
    refined,
    remembering,
    ridge,
    safeguard,
    tune_rates,
    turns,
)
from medmeta.learners.batch import Piece, pieces, still
from medmeta.learners.predictor import LinearPredictor
from medmeta.networks import build, encoder, unet
from medmeta.training import Schedule
from medmeta.training.outer import rehearse
from tests.learners.tasks import close, conv, episode, lesions, mlp, pictures, vectors
from tests.learners.test_metagradient import network as monai_network

ALL = learner_names()
SEGMENT = learner_names("segmentation")
FREE = [n for n in ALL if n in ("proto-maml", "prototypical", "ridge", "matching", "finetune-scratch")]
COMPARING = {"local-prototype", "in-context"}  # predictors that need medmeta
GROWN = {"body-trees", "ranked-regions"}  # the same where they segment; to classify they are ridge
UNCUT = {*GROWN, *COMPARING}  # to segment they take an image of the support at a time, or all
NAMED = {"pretrain-linear", "pretrain-finetune"}


def make(name: str, network: torch.nn.Module, way: int) -> Learner:
    """Create a learner of a few steps, told the number of classes where it needs it."""
    torch.manual_seed(3)
    options: dict[str, object] = {}
    probe = create_learner(name, network).options
    if "way" in probe and (probe.get("head", "learned") == "learned"):
        options["way"] = way
    if "adapt_steps" in probe:
        options["adapt_steps"] = 4
    if name in NAMED:
        options["classes"] = ["background", "tumour", "cyst", "vessel", "oedema"][:way]
    return create_learner(name, network, **options)


def state(learner: Learner) -> dict[str, torch.Tensor]:
    return {n: w.detach().clone() for n, w in learner.state_dict().items()}


@pytest.mark.parametrize("name", ALL)
def test_adapt_leaves_the_learner_bitwise_as_it_was(name: str) -> None:
    learner = make(name, mlp(), 3)
    before = state(learner)
    predictor = learner.adapt(vectors())
    after = learner.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert all(p.grad is None for p in learner.parameters())
    assert not predictor.training
    assert not any(p.requires_grad for p in predictor.parameters())
    assert {id(p) for p in predictor.parameters()}.isdisjoint({id(p) for p in learner.parameters()})


@pytest.mark.parametrize("name", ALL)
def test_adapting_twice_gives_the_same_predictor(name: str) -> None:
    learner, image = make(name, mlp(), 3), vectors(seed=5).image.double()
    assert torch.equal(learner.adapt(vectors())(image), learner.adapt(vectors())(image))


@pytest.mark.parametrize("name", [n for n in ALL if n != "mann"])
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(7)))
def test_order_of_the_support_is_irrelevant(name: str, order: list[int]) -> None:
    learner, support = make(name, mlp(), 3), vectors(7)
    shuffled = Examples(support.image[order], support.label[order], support.classes)
    image = vectors(seed=5).image.double()
    # Adam divides by the slope's size, which makes rounding errors of tiny slopes as large as large ones
    tolerance = 1e-4 if learner.options.get("optimiser") == "adam" else 1e-9
    close(learner.adapt(support)(image), learner.adapt(shuffled)(image), tolerance)


def test_memory_is_told_that_order_matters() -> None:
    learner, support = make("mann", mlp(), 3), vectors(7)
    shuffled = Examples(support.image.flip(0), support.label.flip(0), support.classes)
    image = vectors(seed=5).image.double()
    assert not torch.allclose(learner.adapt(support)(image), learner.adapt(shuffled)(image))
    assert "its order matters" in (type(learner).__doc__ or "")


@pytest.mark.parametrize("name", [*FREE, "relation", "siamese"])
@settings(max_examples=3, deadline=None)
@given(names=st.permutations(range(3)))
def test_relabelling_permutes_the_logits(name: str, names: list[int]) -> None:
    learner, support = make(name, mlp(), 3), vectors(8)
    other = Examples(support.image, torch.tensor(names)[support.label], support.classes)
    image = vectors(seed=5).image.double()
    tolerance = 1e-4 if learner.options.get("optimiser") == "adam" else 1e-9
    close(learner.adapt(other)(image)[:, names], learner.adapt(support)(image), tolerance)


@pytest.mark.parametrize("name", SEGMENT)
@pytest.mark.parametrize("dims", [2, 3])
def test_segmenting_one_voxel_is_classifying(name: str, dims: int) -> None:
    """One pixel an image: with a label an image or a label a voxel, the logits are the same."""
    points = vectors(6, way=2, size=1)
    image = points.image.reshape(6, 1, *[1] * dims)
    classify = Examples(image, points.label, points.classes)
    segment = Examples(image, points.label.reshape(6, *[1] * dims), points.classes)
    learner = make(name, conv(dims), 2)
    one = learner.adapt(classify)(image.double())
    other = learner.adapt(segment)(image.double())
    assert other.shape == (*one.shape, *[1] * dims)
    close(one, other.reshape(one.shape), 1e-9)
    if name != "finetune-scratch":
        losses = [make(name, conv(dims), 2).backward([Episode(e, e)], scale=1.0) for e in (classify, segment)]
        close(losses[0], losses[1], 1e-9)


@pytest.mark.parametrize("name", SEGMENT)
@pytest.mark.parametrize("dims", [2, 3])
def test_every_segmenter_learns_on_a_unet(name: str, dims: int) -> None:
    learner = make(name, build(unet(dims, 1, base=4)), 2)
    task = episode(lesions, dims=dims)
    if name != "finetune-scratch":
        assert torch.isfinite(learner.backward([task], scale=1.0)).all()
        assert any(p.grad is not None and bool(p.grad.any()) for p in learner.parameters())
    logits = learner.adapt(task.support)(task.query.image)
    assert logits.shape == (2, 2, *[16] * dims)
    assert torch.isfinite(logits).all()


def learns(learner: Learner, task: Episode) -> torch.Tensor:
    """One outer step, whose loss and slopes must say something, then adapting; gives the queries' logits."""
    if learner.name != "finetune-scratch":
        assert torch.isfinite(learner.backward([task], scale=1.0)).all()
        slopes = [p.grad for p in learner.parameters() if p.grad is not None]
        assert any(bool(s.any()) for s in slopes)
        assert all(bool(torch.isfinite(s).all()) for s in slopes)
    logits = learner.adapt(task.support)(task.query.image)
    assert torch.isfinite(logits).all()
    return logits


def pairs(names: tuple[str, ...], kinds: tuple[str, ...], quick: tuple[str, ...]) -> list[object]:
    """Learners times networks in 2D and 3D; those in 3D that take long are slow."""
    return [
        pytest.param(name, kind, dims, marks=[pytest.mark.slow] * (dims == 3 and kind not in quick))
        for name in names
        for kind in kinds
        for dims in (2, 3)
    ]


@pytest.mark.parametrize(
    ("name", "kind", "dims"),
    pairs(SEGMENT, ("SegResNet", "BasicUNet", "DynUNet", "MedNeXt"), quick=("SegResNet",)),
)
def test_every_segmenter_takes_every_network(name: str, kind: str, dims: int) -> None:
    side = 32 if dims == 2 or kind == "BasicUNet" else 16  # four halvings must leave more than one voxel
    learner = make(name, monai_network(kind, dims, side).float(), 2)
    task = episode(lesions, n=2, side=side, dims=dims)
    assert learns(learner, task).shape == (2, 2, *[side] * dims)


@pytest.mark.parametrize(("name", "kind", "dims"), pairs(ALL, ("DenseNet", "ViT"), quick=("ViT",)))
def test_every_classifier_takes_every_network_and_ragged_shots(name: str, kind: str, dims: int) -> None:
    side = 32 if dims == 2 else 16
    support = pictures(5, side=side, dims=dims)
    ragged = Examples(support.image, torch.tensor([0, 0, 0, 1, 0]), support.classes)
    learner = make(name, monai_network(kind, dims, side).float(), 2)
    task = Episode(ragged, pictures(3, side=side, dims=dims, seed=4))
    assert learns(learner, task).shape == (3, 2)


@pytest.mark.parametrize("name", ALL)
def test_every_classifier_takes_ragged_shots_on_an_encoder(name: str) -> None:
    support = pictures(5, side=32)
    ragged = Examples(support.image, torch.tensor([0, 0, 0, 1, 0]), support.classes)
    learner = make(name, build(encoder(2, 1, base=4)), 2)
    if name != "finetune-scratch":
        loss = learner.backward([Episode(ragged, pictures(3, side=32, seed=4))], scale=0.5)
        assert loss.shape == (1,)
    assert learner.adapt(ragged)(support.image).shape == (5, 2)


@pytest.mark.parametrize("name", [n for n in SEGMENT if n not in COMPARING | GROWN])
def test_a_predictor_leaves_home_as_a_plain_network(name: str) -> None:
    for task, network in ((lesions(), unet(2, 1, base=4)), (pictures(), unet(2, 1, base=4))):
        predictor = make(name, build(network), 2).adapt(task)
        plain = plain_network(predictor)
        modules = {type(m).__module__.split(".")[0] for m in plain.modules()}
        assert modules <= {"torch", "monai"}
        close(plain(task.image), predictor(task.image), 1e-5)


def test_cosine_prototypes_leave_home_too() -> None:
    for task in (lesions(), pictures()):
        learner = create_learner("prototypical", build(unet(2, 1, base=4)), distance="cosine")
        predictor = learner.adapt(task)
        close(plain_network(predictor)(task.image), predictor(task.image), 1e-5)


@pytest.mark.parametrize("name", ["matching", "relation", "siamese"])
def test_what_compares_with_its_support_leaves_home_too(name: str) -> None:
    """Ragged shots: five of one class, one of another, three of the last."""
    task = vectors(9)
    ragged = Examples(task.image, torch.tensor([0, 0, 1, 0, 2, 0, 2, 2, 0]), task.classes)
    predictor = make(name, mlp(), 3).adapt(ragged)
    plain = plain_network(predictor)
    assert {type(m).__module__.split(".")[0] for m in plain.modules()} == {"torch"}
    close(plain(task.image.double()), predictor(task.image.double()), 1e-7)
    pictured = make(name, build(encoder(2, 1, base=4)), 2).adapt(pictures())
    close(plain_network(pictured)(pictures().image), pictured(pictures().image), 1e-5)


def test_contrastive_distances_but_for_what_all_classes_share() -> None:
    task = vectors(7)
    predictor = create_learner("siamese", mlp(), metric="contrastive").adapt(task)
    answers = [net(task.image.double()).log_softmax(1) for net in (plain_network(predictor), predictor)]
    close(*answers, 1e-7)


@pytest.mark.parametrize("name", ["prototypical", "proto-maml", "relation"])
def test_tokens_leave_home_too(name: str) -> None:
    torch.manual_seed(0)
    patches = torch.nn.Sequential(torch.nn.Conv2d(1, 7, 4, stride=4), torch.nn.Flatten(2))
    network, support = torch.nn.Sequential(patches, torch.nn.Linear(16, 5)), pictures()  # (n, 7, 5)
    predictor = make(name, network, 2).adapt(support)
    close(plain_network(predictor)(support.image), predictor(support.image), 1e-5)


@pytest.mark.parametrize("name", ["mann", *sorted(COMPARING)])
def test_a_predictor_that_needs_us_says_so(name: str) -> None:
    with pytest.raises(LearnerError, match="runs with medmeta only"):
        plain_network(make(name, mlp(), 3).adapt(vectors()))


def test_a_network_of_ones_own_needs_its_class() -> None:
    class Own(torch.nn.Linear):
        pass

    learner = create_learner("proto-maml", Own(5, 4).double())
    with pytest.raises(LearnerError, match="made of torch's and MONAI's modules"):
        plain_network(learner.adapt(vectors()))


@pytest.mark.parametrize("name", ALL)
def test_options_and_weights_make_the_learner_again(name: str) -> None:
    import json

    learner = make(name, mlp(), 3)
    options = json.loads(json.dumps(dict(learner.options)))
    again = create_learner(name, mlp(seed=9), **options)
    again.load_state_dict(learner.state_dict())
    image = vectors(seed=5).image.double()
    assert torch.equal(learner.adapt(vectors())(image), again.adapt(vectors())(image))


def test_pieces_of_a_support_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A support too large for memory gives the weights of one that is not."""
    counts: list[int] = []

    def cut(examples: Examples, like: torch.Tensor) -> list[Piece]:
        parts = pieces(examples, like, most=2 * 16 * 16)
        counts.append(len(parts))
        return parts

    for name in SEGMENT:
        learner, support = make(name, build(unet(2, 1, base=4)).double(), 2), lesions(5)
        at_once = learner.adapt(support)(support.image.double())
        with monkeypatch.context() as patch:
            for room in (comparing, gradient, prototype, refined, remembering, ridge):
                patch.setattr(room, "pieces", cut)
            counts.clear()
            in_pieces = learner.adapt(support)(support.image.double())
        assert (max(counts, default=1) > 1) != (name in UNCUT), name
        close(at_once, in_pieces, 1e-7)


def test_gradients_add_up_over_ranks() -> None:
    tasks = [episode(vectors, n=6), Episode(vectors(6, seed=7), vectors(6, seed=8))]
    for name in ("proto-maml", "prototypical"):
        together, apart = make(name, mlp(), 3), make(name, mlp(), 3)
        together.backward(tasks, scale=0.5)
        for task in tasks:
            apart.backward([task], scale=0.5)
        for one, other in zip(together.parameters(), apart.parameters(), strict=True):
            if one.grad is not None:
                close(one.grad, other.grad, 1e-12)


@pytest.mark.parametrize("name", ["proto-maml", "maml", "maml++", "meta-sgd"])
def test_more_steps_than_in_training(name: str) -> None:
    learner = make(name, mlp(), 3)
    longer = create_learner(name, mlp(), **{**learner.options, "adapt_steps": 12})
    longer.load_state_dict(learner.state_dict())
    logits = longer.adapt(vectors())(vectors().image.double())
    target = vectors().label
    few = learner.adapt(vectors())(vectors().image.double())
    entropy = torch.nn.functional.cross_entropy
    assert entropy(logits, target) < entropy(few, target)


def test_dropout_does_not_make_adapting_random() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Dropout(0.5)).double().train()
    learner = create_learner("proto-maml", network)
    image = vectors().image.double()
    assert torch.equal(learner.adapt(vectors())(image), learner.adapt(vectors())(image))
    assert network.training


def test_threads_that_share_a_learner_adapt_each_to_its_own_support() -> None:
    learner = create_learner("proto-maml", conv(feature=16).train(), rate=0.01)
    supports = [lesions(side=8, seed=seed) for seed in range(8)]
    image = lesions(side=8, seed=9).image.double()
    alone = [learner.adapt(support)(image) for support in supports]
    before, often = state(learner), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda support: learner.adapt(support)(image), supports))
    finally:
        sys.setswitchinterval(often)
    for one, other in zip(alone, together, strict=True):
        close(one, other, 1e-9)
    assert all(torch.equal(w, learner.state_dict()[n]) for n, w in before.items())
    assert all(module.training for module in learner.network.modules())


@pytest.mark.parametrize("name", ["prototypical", "ridge", "local-prototype", "refined-ridge"])
def test_learners_that_share_a_network_copy_it_as_it_is(name: str) -> None:
    """Copied while another learner's weights are in it, it was that one's, or torch refused to copy it."""
    network, support = conv(feature=16), lesions(side=8)
    moving = create_learner("proto-maml", network, rate=0.5, adapt_steps=10)
    other = create_learner(name, network, **({"steps": 1} if name == "refined-ridge" else {}))
    image, often = lesions(side=8, seed=9).image.double(), sys.getswitchinterval()
    alone = other.adapt(support)(image)
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(2) as pool:
            busy = [pool.submit(moving.adapt, support) for _ in range(4)]
            found = []
            while not all(job.done() for job in busy) or not found:
                found.append(other.adapt(support)(image))
    finally:
        sys.setswitchinterval(often)
    for one in found:
        close(one, alone, 1e-9)


def test_tuning_copies_a_learner_as_it_is() -> None:
    """A copy waits for whoever has other weights in the network."""
    learner, inside, done = create_learner("proto-maml", conv(feature=16)), Event(), Event()

    def lend() -> None:
        with still(learner.network):
            inside.set()
            done.wait(60)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(lend)
        inside.wait(60)
        tuned = pool.submit(tune_rates, learner, [episode(lesions, side=8)], rates=[0.1], steps=[1])
        assert not wait([tuned], 0.2).done
        done.set()
        assert tuned.result(60).options["adapt_steps"] == 1


FORKED = """
import os, sys, threading
import torch
from medmeta.learners import create_learner, seen
from medmeta.learners.turns import held
from tests.learners.tasks import conv, lesions

learner, other = (create_learner("proto-maml", conv(feature=16), rate=0.05) for _ in range(2))
support, image = lesions(side=8), lesions(side=8, seed=9).image.double()
other.adapt(support)  # its turn is known already, and would be taken first
alone = learner.adapt(support)(image)
inside, done = threading.Event(), threading.Event()

def lend():  # other weights are in the network, and another network's turn is asked for meanwhile
    with held(learner.network):
        own = {n: w.clone() for n, w in learner.network.state_dict().items()}
        learner.network.load_state_dict({n: 7 * w for n, w in own.items()})
        inside.set()
        done.wait(0.5)
        other.adapt(support)
        learner.network.load_state_dict(own)

thread = threading.Thread(target=lend)
thread.start()
inside.wait()
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # OpenMP's threads are not in a fork: a convolution would wait for them for good
    seen.seen(torch.rand(1, 8, 8))
    os._exit(0 if torch.equal(learner.adapt(support)(image), alone) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
done.set()
thread.join()
assert torch.equal(learner.adapt(support)(image), alone)
"""


def test_a_process_forked_while_another_thread_adapts_goes_on_with_a_whole_network() -> None:
    """It hung, for the thread that would have let the network go is not in it."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED],
        env={**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_turns_at_a_network_are_forgotten_with_it() -> None:
    network = conv()
    create_learner("prototypical", network).adapt(lesions(side=8))
    assert network in turns._held
    gone, count = weakref.ref(network), len(turns._held)
    del network
    gc.collect()
    assert gone() is None
    assert len(turns._held) < count


@pytest.mark.parametrize("name", ALL)
def test_adapting_while_others_only_infer(name: str) -> None:
    learner = make(name, mlp(), 3)
    expected = learner.adapt(vectors())(vectors().image.double())
    with torch.inference_mode():
        found = learner.adapt(vectors())(vectors().image.double())
    close(expected, found, 1e-9)


@pytest.mark.parametrize("name", ["safeguarded", "refined-ridge", "proto-maml", "ranked-regions"])
def test_adapting_to_segment_while_others_only_infer(name: str) -> None:
    support = replace(lesions(), patients=("p", "q"))
    plain = create_learner("ridge" if name == "safeguarded" else name, build(unet(2, 1, base=4)))
    learner = safeguard.Safeguarded(plain) if name == "safeguarded" else plain
    expected = learner.adapt(support)(support.image)
    with torch.inference_mode():
        found = learner.adapt(replace(lesions(), patients=("p", "q")))(support.image)
    close(expected, found, 1e-4)


@pytest.mark.parametrize("name", [n for n in ALL if n != "mann"])
def test_weights_that_somebody_froze_stay(name: str) -> None:
    network = mlp()
    network[0].requires_grad_(False)
    learner = make(name, network, 3)
    adapted = learner.adapt(vectors())
    learner.requires_grad_(False)  # as for serving: what moves was settled when it was made
    served = learner.adapt(vectors())
    image = vectors().image.double()
    close(adapted(image), served(image), 1e-9)
    if isinstance(adapted, LinearPredictor):
        assert torch.equal(adapted.network[0].weight, network[0].weight)
    network[2].requires_grad_(True)
    if name != "finetune-scratch":
        learner.backward([episode(vectors)], scale=1.0)
        assert network[0].weight.grad is None
        assert network[2].weight.grad is not None or name == "anil"


def test_fine_tuning_leaves_weights_that_somebody_froze() -> None:
    network = conv(feature=4)
    network[0].requires_grad_(False)
    tuning = replace(safeguard.SAFEGUARD, steps=3, folds=0)
    support = replace(lesions(), patients=("p", "q"))
    learner = safeguard.Safeguarded(create_learner("ridge", network), tuning)
    *_, (_, tuned, _) = safeguard.walk(learner._start, support, [3], tuning, learner.fixed)
    assert torch.equal(tuned[0].weight, network[0].weight)
    assert not torch.equal(tuned[2].weight, network[2].weight)


def test_a_network_whose_layers_go_by_two_names() -> None:
    """DynUNet's do; and weights may be tied. Adapting must put back what it borrowed."""
    spec = {
        "_target_": "monai.networks.nets.DynUNet",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 4,
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 4, 4],
    }
    learner, task = create_learner("proto-maml", build(spec)), episode(lesions)
    before = state(learner)
    learner.backward([task], scale=1.0)
    predictor = learner.adapt(task.support)
    assert all(torch.equal(w, learner.state_dict()[n]) for n, w in before.items() if n != "outer_steps")
    assert all(isinstance(p, torch.nn.Parameter) for p in learner.network.parameters())
    close(plain_network(predictor)(task.query.image), predictor(task.query.image), 1e-5)


class Keeping(torch.nn.Module):
    """Keeps what it saw last, as networks do whose maps of activation are shown, and has a hook's weights."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.first = torch.nn.utils.weight_norm(torch.nn.Conv2d(1, 4, 3, padding=1))
        self.last = torch.nn.Conv2d(4, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen = self.first(image)
        self.heads = [self.seen.tanh()]
        return self.last(self.heads[0])


@pytest.mark.parametrize("name", ["proto-maml", "refined-ridge", "in-context", "finetune-scratch"])
def test_a_network_that_keeps_what_it_saw(name: str) -> None:
    """Torch copies no tensor that has a graph."""
    torch.manual_seed(0)
    options = {"steps": 2, "folds": 0} if name == "refined-ridge" else {}
    learner, task = create_learner(name, Keeping(), **options), episode(lesions)
    rehearse(learner, [task], Schedule(steps=1)) if name != "finetune-scratch" else None
    before = state(learner)
    predictor = learner.adapt(task.support)
    assert all(torch.equal(w, learner.state_dict()[n]) for n, w in before.items())
    found = predictor(task.query.image)
    learner.adapt(episode(lesions, side=8).query)
    close(predictor(task.query.image), found, 1e-6)
    tune_rates(learner, [task], rates=[0.1], steps=[1])


def test_tied_weights_stay_tied() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Tanh(), torch.nn.Linear(5, 5)).double()
    network[2].weight = network[0].weight
    learner = create_learner("proto-maml", network)
    learner.backward([episode(vectors)], scale=1.0)
    adapted = learner.adapt(vectors()).network
    assert adapted[2].weight is adapted[0].weight
    assert not torch.equal(adapted[0].weight, network[0].weight)
