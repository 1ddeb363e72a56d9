"""The meta-gradient against closed forms, finite differences and other people's engines."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medmeta.episodes.examples import Episode, Examples
from medmeta.learners import create_learner
from medmeta.learners import metagradient as engine
from medmeta.learners.gradient import GradientLearner
from medmeta.learners.loss import set_loss
from medmeta.learners.metagradient import InnerLoop, Weights
from medmeta.networks import build
from tests.learners.tasks import close, episode, lesions, mlp, pictures, vectors

RATE, PULL = 0.1, 0.7


def symmetric(seed: int, size: int = 4) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=g, dtype=torch.float64)
    return root @ root.T / size + 0.3 * torch.eye(size, dtype=torch.float64)


class Quadratic:
    """Support loss (w - c)' A (w - c) / 2 and query loss (w - d)' B (w - d) / 2: everything is known."""

    def __init__(self, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.a, self.b = symmetric(seed), symmetric(seed + 100)
        self.c, self.d = (torch.randn(4, generator=g, dtype=torch.float64) for _ in range(2))

    def loop(self, steps: int, **options: Any) -> InnerLoop:
        def loss(matrix: Tensor, centre: Tensor) -> Any:
            return lambda moving, meta: (moving["w"] - centre) @ matrix @ (moving["w"] - centre) / 2

        return InnerLoop(
            start=lambda meta: {"w": meta["w"]},
            support=loss(self.a, self.c),
            query=loss(self.b, self.d),
            rate=lambda meta, step: {"w": RATE},
            steps=steps,
            **options,
        )

    def end(self, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Where the steps end, and its derivative by the start."""
        shrink = torch.linalg.matrix_power(torch.eye(4, dtype=torch.float64) - RATE * self.a, steps)
        return self.c + shrink @ (start - self.c), shrink


START = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_quadratic_tasks_in_expectation(steps: int) -> None:
    """MAML's, FOMAML's and Reptile's gradients, summed over tasks, equal those worked out by hand."""
    tasks = [Quadratic(seed) for seed in range(5)]
    wanted: dict[str, Tensor] = {n: torch.zeros_like(START) for n in ("second", "first", "reptile")}
    found = {n: torch.zeros_like(START) for n in wanted}
    for task in tasks:
        end, shrink = task.end(START, steps)
        slope = task.b @ (end - task.d)
        wanted["second"] += shrink.T @ slope
        wanted["first"] += slope
        wanted["reptile"] += (torch.eye(4, dtype=torch.float64) - shrink) @ (START - task.c)
        found["second"] += engine.meta_gradient(task.loop(steps), {"w": START}, order="second")[1]["w"]
        found["first"] += engine.meta_gradient(task.loop(steps), {"w": START}, order="first")[1]["w"]
        found["reptile"] += engine.reptile(task.loop(steps), {"w": START})[1]["w"]
    for name in wanted:
        close(found[name], wanted[name], 1e-12)


def test_implicit_gradient_of_quadratic_tasks() -> None:
    """At the bottom of the pulled-back support loss, iMAML is the derivative of where that bottom lies."""
    for seed in range(3):
        task, eye = Quadratic(seed), torch.eye(4, dtype=torch.float64)
        turn = torch.linalg.inv(task.a + PULL * eye)
        bottom = turn @ (task.a @ task.c + PULL * START)
        wanted = PULL * turn @ task.b @ (bottom - task.d)
        loop = task.loop(600, proximity=PULL)
        loss, found = engine.implicit(loop, {"w": START})
        close(found["w"], wanted, 1e-10)
        close(loss, (bottom - task.d) @ task.b @ (bottom - task.d) / 2, 1e-10)


def test_implicit_gradient_of_what_bends_the_loss_without_moving() -> None:
    """A body under a head that moves alone: the bottom moves with it, too."""
    task, eye = Quadratic(3), torch.eye(4, dtype=torch.float64)

    def support(moving: Weights, meta: Weights) -> Tensor:
        return (moving["w"] - meta["c"]) @ task.a @ (moving["w"] - meta["c"]) / 2

    turn = torch.linalg.inv(task.a + PULL * eye)
    bottom = turn @ (task.a @ task.c + PULL * START)
    loop = replace(task.loop(600, proximity=PULL), support=support)
    _, found = engine.implicit(loop, {"w": START, "c": task.c})
    close(found["w"], PULL * turn @ task.b @ (bottom - task.d), 1e-10)
    close(found["c"], task.a @ turn @ task.b @ (bottom - task.d), 1e-10)


def test_multi_step_loss_of_quadratic_tasks() -> None:
    task, emphasis = Quadratic(1), (0.0, 0.3, 0.2, 0.5)
    wanted = torch.zeros_like(START)
    for step, weight in enumerate(emphasis):
        end, shrink = task.end(START, step)
        wanted += weight * shrink.T @ task.b @ (end - task.d)
    for backend in ("loop", "recompute"):
        loop = task.loop(3, emphasis=emphasis)
        close(engine.meta_gradient(loop, {"w": START}, backend=backend)[1]["w"], wanted, 1e-12)


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("backend", ["loop", "recompute", "batched"])
def test_a_pull_to_the_start_of_quadratic_tasks(order: engine.Order, backend: str) -> None:
    """Worked out by hand: the start stays in every step, and the end turns with it."""
    task, eye = Quadratic(2), torch.eye(4, dtype=torch.float64)
    end, turn = START, eye
    for _ in range(4):
        end = end - RATE * (task.a @ (end - task.c) + PULL * (end - START))
        turn = turn - RATE * (task.a @ turn + PULL * (turn - eye))
    slope = task.b @ (end - task.d)
    wanted = turn.T @ slope if order == "second" else slope
    loop = task.loop(4, proximity=PULL)
    if backend == "batched":
        loss, found = engine.batched(lambda _: loop, torch.zeros(1), {"w": START}, order=order)
    else:
        loss, found = engine.meta_gradient(loop, {"w": START}, order=order, backend=backend)
    close(found["w"], wanted, 1e-12)
    close(loss.sum(), (end - task.d) @ task.b @ (end - task.d) / 2, 1e-12)


# --- finite differences: the whole learner, in float64, along a random direction ---

NETWORKS: dict[str, dict[str, Any]] = {
    "UNet": {"channels": [4, 8], "strides": [2], "in_channels": 1, "out_channels": 3},
    "SegResNet": {
        "init_filters": 4,
        "in_channels": 1,
        "out_channels": 3,
        "blocks_down": [1, 1],
        "blocks_up": [1],
        "norm": ["group", {"num_groups": 2}],
    },
    "BasicUNet": {"features": [4, 4, 4, 4, 4, 4], "in_channels": 1, "out_channels": 3},
    "DynUNet": {
        "in_channels": 1,
        "out_channels": 3,
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 4, 4],
        "norm_name": "instance",
    },
    "MedNeXt": {
        "init_filters": 4,
        "in_channels": 1,
        "out_channels": 3,
        "blocks_down": [1, 1],
        "blocks_bottleneck": 1,
        "blocks_up": [1, 1],
    },
    "DenseNet": {
        "in_channels": 1,
        "out_channels": 3,
        "init_features": 4,
        "growth_rate": 4,
        "block_config": [2],
        "norm": "instance",
    },
    "ViT": {
        "in_channels": 1,
        "patch_size": 8,
        "hidden_size": 8,
        "mlp_dim": 8,
        "num_layers": 1,
        "num_heads": 2,
        "classification": True,
        "num_classes": 3,
        "post_activation": None,
    },
}
CLASSIFIERS = ("DenseNet", "ViT")


def network(kind: str, dims: int, side: int) -> nn.Module:
    if kind == "ViT":
        pytest.importorskip("einops")
    torch.manual_seed(0)
    spec = {"_target_": f"monai.networks.nets.{kind}", "spatial_dims": dims, **NETWORKS[kind]}
    if kind == "ViT":
        spec["img_size"] = [side] * dims
    return build(spec).double()


def direction(learner: nn.Module) -> Weights:
    g = torch.Generator().manual_seed(1)
    return {n: torch.randn(w.shape, generator=g, dtype=w.dtype) for n, w in learner.named_parameters()}


def value_at(learner: GradientLearner, task: Episode, way: Weights, far: float) -> float:
    with torch.no_grad():
        for name, weight in learner.named_parameters():
            weight += far * way[name]
    loss = float(learner.task_gradient(task)[0])
    with torch.no_grad():
        for name, weight in learner.named_parameters():
            weight -= far * way[name]
    return loss


def slope_along(learner: GradientLearner, way: Weights) -> float:
    slopes = {n: w.grad for n, w in learner.named_parameters()}
    return sum(float((s * way[n]).sum()) for n, s in slopes.items() if s is not None)


def check_second_order(kind: str, dims: int, backend: str) -> None:
    side = 32 if kind == "BasicUNet" else 16  # four halvings must leave more than one voxel
    make = pictures if kind in CLASSIFIERS else lesions
    task = episode(make, n=2, side=side, dims=dims)
    if kind == "BasicUNet" and dims == 3:
        task = episode(make, n=1, side=side, dims=dims)
    options: dict[str, Any] = {"steps": 2, "backend": backend, "rates": "step"}
    learner = create_learner("proto-maml", network(kind, dims, side), **options)
    assert isinstance(learner, GradientLearner)
    learner.backward([task], scale=1.0)
    way = direction(learner)
    far = 1e-8  # below 1e-6 no ReLU changes sides any more
    measured = (value_at(learner, task, way, far) - value_at(learner, task, way, -far)) / (2 * far)
    found = slope_along(learner, way)
    assert abs(found - measured) <= 1e-5 * max(abs(measured), 2e-2), (found, measured)


SMALL = [
    ("UNet", 2, "loop"),
    ("UNet", 2, "recompute"),
    ("UNet", 2, "batched"),
    ("UNet", 3, "recompute"),
    ("SegResNet", 2, "recompute"),
    ("BasicUNet", 2, "batched"),
    ("DynUNet", 2, "batched"),
    ("MedNeXt", 2, "recompute"),
    ("DenseNet", 2, "batched"),
    ("ViT", 2, "loop"),
    ("ViT", 2, "batched"),
]
LARGE = [(k, d, b) for k in NETWORKS for d in (2, 3) for b in ("loop", "recompute", "batched")]


@pytest.mark.parametrize(("kind", "dims", "backend"), SMALL)
def test_second_order_is_the_finite_difference(kind: str, dims: int, backend: str) -> None:
    check_second_order(kind, dims, backend)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dims", "backend"), [row for row in LARGE if row not in SMALL])
def test_second_order_is_the_finite_difference_everywhere(kind: str, dims: int, backend: str) -> None:
    check_second_order(kind, dims, backend)


@pytest.mark.parametrize("backend", ["loop", "recompute", "batched"])
@pytest.mark.parametrize("name", ["proto-maml", "maml", "anil", "meta-sgd"])
def test_a_pull_to_the_start_has_its_finite_difference(name: str, backend: str) -> None:
    task, options = episode(vectors, n=6), {} if name == "proto-maml" else {"way": 3}
    torch.manual_seed(0)
    given = {"steps": 3, "rate": 0.2, "proximity": 2.0, "clip": 0.5, "backend": backend, **options}
    learner = create_learner(name, mlp(), **given)
    assert isinstance(learner, GradientLearner)
    learner.backward([task], scale=1.0)
    way, far = direction(learner), 1e-6
    measured = (value_at(learner, task, way, far) - value_at(learner, task, way, -far)) / (2 * far)
    assert abs(slope_along(learner, way) - measured) <= 1e-7 * abs(measured)


def test_meta_training_judges_where_adapt_ends() -> None:
    """With a pull to the start, too: the query loss of an episode is that of the predictor."""
    task = episode(vectors, n=6)
    torch.manual_seed(0)
    learner = create_learner("maml", mlp(), way=3, rate=0.3, proximity=2.0)
    guess = learner.adapt(task.support)(task.query.image.double())
    close(learner.backward([task], scale=1.0)[0], set_loss(guess, task.query.label), 1e-10)


def constant_slopes(learner: GradientLearner, task: Episode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Freeze the slopes of the inner steps at what they are now: what first order differentiates."""
    kept: list[Weights] = []
    real = learner.inner_loop

    def record(loop: InnerLoop, moving: Weights, meta: Weights, graph: bool) -> Weights:
        kept.append(engine.autograd_slope(loop, moving, meta, graph))
        return kept[-1]

    monkeypatch.setattr(learner, "inner_loop", lambda *given: replace(real(*given), slope=record))
    learner.task_gradient(task)
    steps, count = len(kept), iter(range(10**6))

    def replay(loop: InnerLoop, moving: Weights, meta: Weights, graph: bool) -> Weights:
        return kept[next(count) % steps]

    monkeypatch.setattr(learner, "inner_loop", lambda *given: replace(real(*given), slope=replay))


def check_first_order(kind: str, dims: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    side = 32 if kind == "BasicUNet" else 16
    n = 1 if kind == "BasicUNet" and dims == 3 else 2
    task = episode(pictures if kind in CLASSIFIERS else lesions, n=n, side=side, dims=dims)
    options: dict[str, Any] = {"steps": 2, "rates": "step", "order": "first", "backend": backend}
    learner = create_learner("proto-maml", network(kind, dims, side), **options)
    assert isinstance(learner, GradientLearner)
    learner.backward([task], scale=1.0)
    way, far = direction(learner), 1e-8
    found = slope_along(learner, way)
    constant_slopes(learner, task, monkeypatch)
    measured = (value_at(learner, task, way, far) - value_at(learner, task, way, -far)) / (2 * far)
    assert abs(found - measured) <= 1e-5 * max(abs(measured), 2e-2), (found, measured)


FIRST = [(k, 2, b) for k in ("UNet", "DynUNet", "DenseNet") for b in ("loop", "batched")]


@pytest.mark.parametrize(("kind", "dims", "backend"), FIRST)
def test_first_order_is_the_finite_difference_with_slopes_held(
    kind: str, dims: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_first_order(kind, dims, backend, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dims", "backend"), [row for row in LARGE if row not in FIRST])
def test_first_order_is_the_finite_difference_everywhere(
    kind: str, dims: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_first_order(kind, dims, backend, monkeypatch)


@pytest.mark.parametrize("name", ["proto-maml", "maml", "anil", "meta-sgd", "maml++"])
def test_backends_agree(name: str) -> None:
    tasks = [episode(vectors, n=6), Episode(vectors(6, seed=7), vectors(6, seed=8))]
    gradients = []
    for backend in ("loop", "recompute", "batched"):
        torch.manual_seed(0)
        options: dict[str, Any] = {"backend": backend, "clip": 0.5, "anneal": 0}
        if create_learner(name, mlp()).options["head"] == "learned":
            options["way"] = 3
        learner = create_learner(name, mlp(), **options)
        losses = learner.backward(tasks, scale=0.5)
        gradients.append([losses] + [p.grad for p in learner.parameters()])
    for other in gradients[1:]:
        for one, two in zip(gradients[0], other, strict=True):
            close(one, two, 1e-12)


def test_a_head_with_rows_by_name_is_each_tasks_own(caplog: pytest.LogCaptureFixture) -> None:
    def named(classes: tuple[str, str], seed: int) -> Episode:
        sides = (vectors(4, way=2, seed=seed + i) for i in range(2))
        return Episode(*(Examples(s.image, s.label, classes) for s in sides))

    tasks, found = [named(("a", "b"), 1), named(("b", "c"), 3)], []
    for backend in ("loop", "batched"):
        torch.manual_seed(0)
        learner = create_learner("maml", mlp(), classes=("a", "b", "c"), backend=backend)
        losses = learner.backward(tasks, scale=0.5)
        found.append([losses, *[p.grad for p in learner.parameters()]])
    for one, other in zip(*found, strict=True):
        close(one, other, 1e-12)
    assert "their classes differ, and the head has a row for each by name" in caplog.text


# --- other people's engines ---


def maml(name: str, **options: Any) -> GradientLearner:
    torch.manual_seed(0)
    learner = create_learner(name, mlp(), way=3, steps=3, rate=0.2, **options)
    assert isinstance(learner, GradientLearner)
    return learner


def whole_network(learner: GradientLearner) -> nn.Sequential:
    last = nn.Linear(4, 3).double()
    last.load_state_dict({"weight": learner.head["weight"], "bias": learner.head["bias"]})
    network = nn.Sequential(*build_copy(learner.network), last)
    return network


def build_copy(network: nn.Module) -> list[nn.Module]:
    copy = mlp(seed=5)
    copy.load_state_dict(network.state_dict())
    return list(copy.children())


def ours(learner: GradientLearner, task: Episode) -> list[Tensor]:
    learner.backward([task], scale=1.0)
    found = [p.grad for p in learner.network.parameters()]
    found += [learner.head["weight"].grad, learner.head["bias"].grad]
    return [f for f in found if f is not None]


@pytest.mark.parametrize("name", ["maml", "fomaml", "anil", "meta-sgd"])
def test_higher_gives_the_same_gradient(name: str) -> None:
    higher = pytest.importorskip("higher")
    learner, task = maml(name), episode(vectors, n=6)
    if name == "meta-sgd":
        with torch.no_grad():
            for p in learner.rate.values():
                p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2))
    network = whole_network(learner)
    moving = list(network.children())[-1] if name == "anil" else network
    groups = [{"params": [p]} for p in moving.parameters()]
    optimiser = torch.optim.SGD(groups, lr=0.2)
    names = [f"network/{n.replace('.', '/')}" for n, _ in learner.network.named_parameters()] + [
        "head/weight",
        "head/bias",
    ]
    rates = [0.2] * len(groups)
    if name == "meta-sgd":
        rates = [0.2 * torch.exp(10 * learner.rate[n][0].detach()).requires_grad_() for n in names]
    # anil: only the head's slopes are taken; the body gets its gradient from the query alone
    with higher.innerloop_ctx(
        network,
        optimiser,
        track_higher_grads=name != "fomaml",
        copy_initial_weights=False,
        override={"lr": rates},
    ) as (fast, descent):
        for _ in range(3):
            descent.step(F.cross_entropy(fast(task.support.image.double()), task.support.label))
        loss = F.cross_entropy(fast(task.query.image.double()), task.query.label)
        if name == "fomaml":
            wanted = torch.autograd.grad(loss, list(fast.parameters()))
        else:
            wanted = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
            slopes = torch.autograd.grad(loss, rates) if name == "meta-sgd" else []
    for one, other in zip(ours(learner, task), wanted, strict=True):
        close(one, other, 1e-10)
    if name == "meta-sgd":
        for n, rate, slope in zip(names, rates, slopes, strict=True):
            close(learner.rate[n].grad[0], slope * rate.detach() * 10, 1e-10)


@pytest.mark.parametrize("name", ["maml", "fomaml", "anil"])
def test_torchopt_gives_the_same_gradient(name: str) -> None:
    torchopt = pytest.importorskip("torchopt")
    learner, task = maml(name), episode(vectors, n=6)
    network = whole_network(learner)
    start = dict(network.named_parameters())
    moves = [n for n in start if name != "anil" or n.startswith("3.")]
    descent = torchopt.sgd(lr=0.2)
    fast = {n: start[n] for n in moves}
    memory = descent.init(fast)

    def loss_of(weights: Weights, side: Any) -> Tensor:
        out = torch.func.functional_call(network, {**start, **weights}, (side.image.double(),))
        return F.cross_entropy(out, side.label)

    for _ in range(3):
        slopes = torch.autograd.grad(
            loss_of(fast, task.support), list(fast.values()), create_graph=name != "fomaml"
        )
        updates, memory = descent.update(dict(zip(fast, slopes, strict=True)), memory, inplace=False)
        fast = torchopt.apply_updates(fast, updates, inplace=False)
    wanted = torch.autograd.grad(loss_of(fast, task.query), list(start.values()))
    for one, other in zip(ours(learner, task), wanted, strict=True):
        close(one, other, 1e-10)


def derivatives_are_right(function: Any, given: tuple[Tensor, ...]) -> None:
    assert torch.autograd.gradcheck(function, given)
    assert torch.autograd.gradgradcheck(function, given)


def random(*shape: int, seed: int = 0, last: bool = False) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if last:
        drawn = drawn.contiguous(memory_format=torch.channels_last_3d)
    return drawn.requires_grad_()


@pytest.mark.parametrize(("stride", "groups", "others"), [(1, 1, 2), (1, 1, 5), (2, 2, 2)])
def test_the_convolution_has_torchs_derivatives(stride: int, groups: int, others: int) -> None:
    from medmeta.learners.convolution import convolution, transposed

    image, weight, bias = random(2, 4, 3, 4, 3), random(2, 4 // groups, 2, 2, 2), random(2)

    def quick(*given: Tensor) -> Any:
        return convolution(*given, stride, 1, groups=groups)

    torch.testing.assert_close(
        quick(image, weight, bias), F.conv3d(image, weight, bias, stride, 1, groups=groups)
    )
    derivatives_are_right(quick, (image, weight, bias))

    def back(*given: Tensor) -> Any:
        return transposed(*given, stride, 1, 0, groups)

    weight, bias = random(4, others, 2, 2, 2), random(others * groups)
    torch.testing.assert_close(
        back(image, weight, bias), F.conv_transpose3d(image, weight, bias, stride, 1, 0, groups)
    )
    derivatives_are_right(back, (image, weight, bias))


@pytest.mark.parametrize("groups", [1, 2])
def test_the_first_layer_of_pictures_has_torchs_derivatives(groups: int) -> None:
    from medmeta.learners.convolution import convolution

    image, weight, bias = random(2, 2, 5, 4).detach(), random(4, 2 // groups, 3, 3), random(4)

    def quick(*given: Tensor) -> Any:
        return convolution(image, *given, 2, 1, groups=groups)

    torch.testing.assert_close(quick(weight, bias), F.conv2d(image, weight, bias, 2, 1, groups=groups))
    derivatives_are_right(quick, (weight, bias))
    assert convolution(image.requires_grad_(), weight) is None  # torch's own is as quick there


@pytest.mark.parametrize("size", [3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("groups", [1, 16])
def test_a_wide_kernel_on_a_small_image_has_a_slope(size: int, groups: int) -> None:
    """In single precision, where torch's quick kernel leaves parts of it as the memory was."""
    from medmeta.learners.convolution import convolution, transposed

    image, weight = random(2, 16, size, size, size), random(16, 16 // groups, 7, 7, 7, seed=1)
    for layer in (convolution, transposed):
        found = []
        for kind in (torch.float64, torch.float32):
            given = [t.detach().to(kind).requires_grad_() for t in (image, weight)]
            out = layer(*given, None, 2, 3, groups=groups)
            assert out is not None
            dirt = [torch.full((2**18,), float("nan")) for _ in range(8)]
            del dirt
            found.append(torch.autograd.grad(out.square().sum(), given))
        for right, ours in zip(*found, strict=True):
            close(ours.double(), right, 1e-5)


@pytest.mark.parametrize("others", [2, 4])  # few channels run plain
def test_the_up_sampling_layer_has_torchs_derivatives(others: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from medmeta.learners import phases
    from medmeta.learners.convolution import transposed

    monkeypatch.setattr(phases, "SMALL", (0, 0))
    image, weight, bias = random(2, 3, 2, 3, 2), random(3, others, 3, 3, 3), random(others)

    def quick(*given: Tensor) -> Any:
        return transposed(*given, 2, 1, 1)

    assert phases.doubles(image, tuple(weight.shape), ([2] * 3, [1] * 3, [1] * 3, True, [1] * 3, 1))
    torch.testing.assert_close(quick(image, weight, bias), F.conv_transpose3d(image, weight, bias, 2, 1, 1))
    derivatives_are_right(quick, (image, weight, bias))


@pytest.mark.parametrize("classes", [2, 5])
def test_a_pointwise_convolution_is_a_product_of_matrices(classes: int) -> None:
    from medmeta.learners.convolution import convolution

    image, weight, bias = random(2, 3, 2, 3, 2), random(classes, 3, 1, 1, 1), random(classes)
    torch.testing.assert_close(convolution(image, weight, bias), F.conv3d(image, weight, bias))
    derivatives_are_right(convolution, (image, weight, bias))


@pytest.mark.parametrize(
    ("dims", "last", "limits"),  # of a narrow group, and of the points on which torch's kernel is slow
    [(2, False, (8, 0)), (3, False, (8, 0)), (3, True, (8, 0)), (3, True, (8, 99)), (3, True, (0, 0))],
)
@pytest.mark.parametrize(("groups", "affine"), [(1, True), (2, True), (4, True), (2, False), (4, False)])
def test_the_norm_has_torchs_derivatives(
    groups: int,
    affine: bool,
    dims: int,
    last: bool,
    limits: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from medmeta.learners import normalisation

    monkeypatch.setattr(normalisation, "SMALL", 0)
    monkeypatch.setattr(normalisation, "NARROW", limits[0])
    monkeypatch.setattr(normalisation, "POINTS", limits[1])
    given: tuple[Tensor, ...] = (random(2, 4, 3, 2, 2, last=last) if dims == 3 else random(2, 4, 3, 2),)
    if affine:
        given = (*given, random(4, seed=1), random(4, seed=2))

    def quick(image: Tensor, *weights: Tensor) -> Any:
        return normalisation.group_norm(image, groups, *weights)

    torch.testing.assert_close(quick(*given), F.group_norm(given[0], groups, *given[1:]))
    derivatives_are_right(quick, given)
    if groups == 4:
        other = normalisation.instance_norm(given[0], None, None, *given[1:])
        torch.testing.assert_close(other, F.instance_norm(given[0], None, None, *given[1:]))


@pytest.mark.parametrize("weights", [1, 4])
def test_the_activation_has_torchs_derivatives(weights: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from medmeta.learners import activation
    from medmeta.learners.activation import prelu

    monkeypatch.setattr(activation, "SMALL", 0)
    given = random(2, 4, 3, 2, 2), random(weights, seed=1)
    torch.testing.assert_close(prelu(*given), torch.prelu(*given))
    derivatives_are_right(prelu, given)


def test_a_norm_of_numbers_far_from_zero_is_torchs() -> None:
    from medmeta.learners.normalisation import Norm

    image = (random(2, 8, 16, 16, 16) + 30).float()
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        apply: Any = Norm.apply
        out = apply(image.contiguous(memory_format=layout), None, None, 8, 1e-5)
        torch.testing.assert_close(out, F.group_norm(image, 8), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["UNet", "DynUNet", "SegResNet", "MedNeXt"])
def test_quick_layers_give_the_same_meta_gradient(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from medmeta.learners import activation, normalisation, phases, quick

    monkeypatch.setattr(normalisation, "SMALL", 0)
    monkeypatch.setattr(activation, "SMALL", 0)
    monkeypatch.setattr(phases, "SMALL", (0, 0))
    task, found = episode(lesions, n=1, dims=3), []
    for ours in (quick.OURS, {}):
        monkeypatch.setattr(quick, "OURS", ours)
        learner = create_learner("proto-maml", network(kind, 3, 16), steps=2)
        learner.backward([task], scale=1.0)
        found.append([p.grad for p in learner.parameters()])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)


COMPILED = """
import copy, logging, sys
import torch
from medmeta.episodes.examples import Episode
from medmeta.learners import create_learner
from medmeta.learners.compiled import Compiled
from medmeta.networks import build, unet
from tests.learners.tasks import lesions, mlp, vectors

logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
makes = {"mlp": (mlp, vectors), "unet": (lambda: build(unet(2, 1, base=4)).double(), lesions)}
for name, kind, options in (
    ("maml++", "mlp", {"way": 3, "anneal": 1}),
    ("proto-maml", "unet", {}),
):
    network, make = makes[kind]
    rounds = [[Episode(make(6, seed=s), make(6, seed=s + 50)) for s in (r, r + 1)] for r in (1, 10, 20)]
    found = []
    for backend in ("loop", "compiled"):
        torch.manual_seed(5)
        learner = create_learner(name, network(), steps=1, backend=backend, **options)
        learner.compiled = Compiled("aot_eager")
        losses = torch.stack([learner.backward(tasks, scale=0.5) for tasks in rounds])
        found.append(torch.cat([losses.flatten(), *[p.grad.flatten() for p in learner.parameters()]]))
    gap = float((found[0] - found[1]).norm() / found[0].norm())
    print(name, len(learner.compiled.steps), len(copy.deepcopy(learner).compiled.steps), gap)
"""


def test_compiled_tasks_have_the_same_gradient() -> None:
    """By the compiler's own front and middle part, in a process without checks of shapes, which it cannot see
    through: what is traced is what runs on a GPU."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILED], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == ["maml++", "proto-maml"], done.stdout
    assert all(row[1:3] == ["1", "0"] for row in rows)  # one kind for all rounds, none in a copy
    assert max(float(row[3]) for row in rows) < 1e-10


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 4).double()

        def forward(self, image: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            out: Tensor = self.layer(image)
            return out

    tasks = [episode(vectors, n=6), Episode(vectors(6, seed=7), vectors(6, seed=8))]
    found = []
    for backend in ("batched", "compiled"):
        torch.manual_seed(5)
        learner = create_learner("maml", Asking(), way=3, feature=4, backend=backend)
        found.append(learner.backward(tasks, scale=0.5))
    assert torch.equal(*found)
    assert "in one batch, but not compiled" in caplog.text


@pytest.mark.gpu
def test_captured_graphs_have_the_same_gradient() -> None:
    rounds = [[Episode(vectors(6, seed=s), vectors(6, seed=s + 50)) for s in (r, r + 1)] for r in (1, 10, 20)]
    found = []
    for backend in ("loop", "compiled"):
        torch.manual_seed(5)
        learner = create_learner("maml", mlp().cuda(), way=3, steps=2, backend=backend)
        losses = [learner.backward(tasks, scale=0.5) for tasks in rounds]
        found.append([*losses, *[p.grad for p in learner.parameters()]])
    for one, other in zip(*found, strict=True):
        close(one, other, 1e-10)


@pytest.mark.parametrize("kind", [k for k in NETWORKS if k not in CLASSIFIERS])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_head_in_the_last_layer_changes_no_gradient(
    kind: str, dims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = 32 if kind == "BasicUNet" else 16
    task, found = episode(lesions, n=1, side=side, dims=dims), []
    for folded in (True, False):
        learner = create_learner("proto-maml", network(kind, dims, side), steps=2)
        assert isinstance(learner, GradientLearner)
        if not folded:
            monkeypatch.setattr(learner.functional, "looked", True)
        losses = learner.backward([task], scale=1.0)
        assert (learner.functional.last is not None) == folded
        guess = learner.adapt(task.support)(task.query.image.double())
        found.append([losses, guess, *[p.grad for p in learner.parameters()]])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)


def test_only_an_output_that_is_a_layers_own_takes_the_head() -> None:
    from medmeta.learners.folding import last_layer

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, image: Tensor) -> Tensor:
            out: Tensor = self.layer(self.layer(image))
            return out

    image, layer = torch.ones(1, 1, 8, 8), nn.Conv2d(1, 4, 3, padding=1)
    assert last_layer(nn.Sequential(layer, nn.Dropout(0.0).eval()), image) is not None
    for kept in (
        Tied(),
        nn.Sequential(layer, nn.ReLU()),
        nn.Sequential(layer, nn.LeakyReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(1, 4, 3, groups=1), nn.Conv2d(4, 4, 3, groups=4)),
    ):
        assert last_layer(kept, image) is None
    without = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False)).double()
    learner, task = create_learner("proto-maml", without), episode(lesions, n=1)
    assert isinstance(learner, GradientLearner)
    learner.backward([task], scale=1.0)
    assert learner.functional.last is not None
    assert not learner.functional.last.bias
    way, far = direction(learner), 1e-6
    measured = (value_at(learner, task, way, far) - value_at(learner, task, way, -far)) / (2 * far)
    assert abs(slope_along(learner, way) - measured) <= 1e-6 * abs(measured)


@pytest.mark.parametrize("backend", ["loop", "recompute", "batched"])
def test_half_precision_points_the_same_way(backend: str) -> None:
    tasks, found = [Episode(lesions(2, seed=s), lesions(2, seed=s + 9)) for s in (1, 2)], []
    for precision in ("full", "bf16"):
        made = network("UNet", 2, 16).float()
        learner = create_learner("proto-maml", made, steps=2, backend=backend, precision=precision)
        losses = learner.backward(tasks, scale=0.5)
        assert losses.dtype == torch.float32
        grads = [p.grad for n, p in learner.named_parameters() if n.startswith("network.")]
        assert all(g is not None and g.dtype == torch.float32 for g in grads)
        found.append(torch.cat([g.flatten() for g in grads if g is not None]))
    likeness = F.cosine_similarity(found[0], found[1], dim=0)
    assert 0.98 < float(likeness) < 1 - 1e-9  # alike, and not computed alike
