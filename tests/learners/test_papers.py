"""What the papers' equations say in numpy, beside what the learners do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medmeta.episodes.examples import Episode, Examples
from medmeta.learners import create_learner
from medmeta.learners.comparing import Siamese
from tests.learners.tasks import close, mlp, vectors

Numbers = NDArray[np.float64]
Net = dict[str, Numbers]
"""A linear network and head: ``softmax(x B' V' + b)``."""


def numbers(tensor: torch.Tensor) -> Numbers:
    return tensor.detach().double().numpy()


def hot(support: Examples) -> Numbers:
    return np.eye(len(support.classes))[support.label.numpy()]


def share(image: Numbers, net: Net) -> Numbers:
    score = image @ net["network.weight"].T @ net["head.weight"].T + net["head.bias"]
    up = np.exp(score - score.max(1, keepdims=True))
    return up / up.sum(1, keepdims=True)


def entropy(side: Examples, net: Net) -> float:
    return float(-np.log((share(numbers(side.image), net) * hot(side)).sum(1)).mean())


def slope(side: Examples, net: Net) -> Net:
    image = numbers(side.image)
    apart = (share(image, net) - hot(side)) / len(image)
    feature = image @ net["network.weight"].T
    return {
        "network.weight": (apart @ net["head.weight"]).T @ image,
        "head.weight": apart.T @ feature,
        "head.bias": apart.sum(0),
    }


def walk(support: Examples, net: Net, rates: list[Net]) -> list[Net]:
    """``w <- w - rate * slope`` at each step."""
    path = [net]
    for rate in rates:
        down = slope(support, path[-1])
        path.append({n: w - rate[n] * down[n] for n, w in path[-1].items()})
    return path


def linear(name: str, **options: object):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    network = torch.nn.Linear(5, 4, bias=False).double()
    learner = create_learner(name, network, way=3, rate=0.3, **options)
    with torch.no_grad():
        for rate in learner.rate.values():
            rate += 0.05 * torch.randn(rate.shape, dtype=rate.dtype)
    return learner


def start(learner) -> Net:  # type: ignore[no-untyped-def]
    named = dict(learner.named_parameters())
    return {n: numbers(named[n]).copy() for n in ("network.weight", "head.weight", "head.bias")}


def rates(learner, net: Net) -> list[Net]:  # type: ignore[no-untyped-def]
    """Rate of each weight at each step."""
    own = {n: 0.3 * np.exp(10 * numbers(learner.rate[n.replace(".", "/")])) for n in net}
    return [{n: r[min(step, len(r) - 1)] for n, r in own.items()} for step in range(learner.inner.steps)]


def test_meta_sgd_moves_each_weight_by_a_rate_of_its_own() -> None:
    """Li et al. 2017, equation 1, and what equation 3 says of the rates."""
    learner = linear("meta-sgd", steps=1)
    task = Episode(vectors(seed=1), vectors(seed=2))
    net, (rate,) = start(learner), rates(learner, start(learner))
    assert {n: r.shape for n, r in rate.items()} == {n: w.shape for n, w in net.items()}
    moved = walk(task.support, net, [rate])[-1]
    predictor = learner.adapt(task.support)
    close(predictor.network.weight, torch.from_numpy(moved["network.weight"]), 1e-12)
    close(predictor.head.weight, torch.from_numpy(moved["head.weight"]), 1e-12)
    close(predictor.head.bias, torch.from_numpy(moved["head.bias"]), 1e-12)
    learner.backward([task], scale=1.0)
    down, after = slope(task.support, net), slope(task.query, moved)
    for name, own in rate.items():  # by the logarithm of a rate, of which a parameter is a tenth
        wanted = -after[name] * down[name] * own * 10
        close(learner.rate[name.replace(".", "/")].grad[0], torch.from_numpy(wanted), 1e-12)


@pytest.mark.parametrize("done", [0, 4, 10, 16, 20, 50])
def test_maml_plus_plus_anneals_losses_and_orders(done: int) -> None:
    """Antoniou et al. 2019, section 4: all steps' losses alike at first, the last one's at the end; first
    order before second; one learned rate a layer and step."""
    steps, anneal = 3, 20
    learner = linear("maml++", steps=steps, anneal=anneal)
    learner.outer_steps += done
    task = Episode(vectors(seed=1), vectors(seed=2))
    early = max(0.0, (1 - done / anneal) / steps)
    weight = [early] * (steps - 1) + [1 - early * (steps - 1)]
    net, rate = start(learner), rates(learner, start(learner))

    def loss(net: Net) -> float:
        path = walk(task.support, net, rate)[1:]
        return sum(w * entropy(task.query, one) for w, one in zip(weight, path, strict=True))

    found = learner.backward([task], scale=1.0)
    assert float(found[0]) == pytest.approx(loss(net), rel=1e-12)
    named = dict(learner.named_parameters())
    for name in net:
        if done < anneal / 2:  # steps are constants
            path = walk(task.support, net, rate)[1:]
            parts = [w * slope(task.query, one)[name] for w, one in zip(weight, path, strict=True)]
            close(named[name].grad, torch.from_numpy(sum(parts)), 1e-12)
            continue
        way = np.random.default_rng(0).normal(size=net[name].shape)
        ends = [loss({**net, name: net[name] + far * way}) for far in (1e-5, -1e-5)]
        slope_along = float((numbers(named[name].grad) * way).sum())
        assert slope_along == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-7)


def test_maml_plus_plus_goes_on_at_the_last_steps_rate() -> None:
    learner = linear("maml++", steps=2, adapt_steps=4)
    net = start(learner)
    first, last = rates(learner, net)
    moved = walk(vectors(), net, [first, last, last, last])[-1]
    close(learner.adapt(vectors()).network.weight, torch.from_numpy(moved["network.weight"]), 1e-12)


@pytest.mark.parametrize("count", [3, 5, 7, 12])  # shots that are unequal, too; fewer and more than features
def test_ridge_is_that_of_r2d2_by_woodburys_identity(count: int) -> None:
    """Bertinetto et al. 2019, equation 6, ``W = X' (X X' + lambda I)^-1 Y``: a matrix of the support's size.
    The intercept is not penalised, so all is about means; classes count alike, so rows are weighed."""
    support, network = vectors(count), mlp(feature=8)
    learner = create_learner("ridge", network, penalty=0.25, scale=4.0)
    x, y = numbers(network(support.image.double())), hot(support)
    weight = (y / y.sum(0)).sum(1, keepdims=True) / 3
    x_mean, y_mean = (weight * x).sum(0), (weight * y).sum(0)
    x, y = weight**0.5 * (x - x_mean), weight**0.5 * (y - y_mean)
    solved = x.T @ np.linalg.solve(x @ x.T + 0.25 * np.eye(count), y)
    asked = vectors(9, seed=4).image.double()
    wanted = 4 * ((numbers(network(asked)) - x_mean) @ solved + y_mean)
    close(learner.adapt(support)(asked), torch.from_numpy(wanted), 1e-10)


def test_matching_is_attention_by_cosine() -> None:
    """Vinyals et al. 2016, equation 1 and section 2.1.1, the cosines times ten."""
    support, asked, network = vectors(7), vectors(4, seed=3), mlp()
    ours, theirs = (numbers(network(s.image.double())) for s in (support, asked))
    wanted = np.zeros((4, 3))
    for q, one in enumerate(theirs):
        cosine = np.array([one @ s / np.linalg.norm(one) / np.linalg.norm(s) for s in ours])
        attention = np.exp(10 * cosine) / np.exp(10 * cosine).sum()
        for a, label in zip(attention, support.label.tolist(), strict=True):
            wanted[q, label] += a
    learner = create_learner("matching", network, scale=10.0)
    close(learner.adapt(support)(asked.image.double()).exp(), torch.from_numpy(wanted), 1e-10)
    loss = learner.backward([Episode(support, asked)], scale=1.0)
    weight = 1 / hot(asked).sum(0)  # every class of query counts alike
    each = -np.log(wanted[np.arange(4), asked.label.numpy()]) * weight[asked.label.numpy()]
    assert float(loss[0]) == pytest.approx(each.sum() / 3, rel=1e-10)


def test_relation_scores_are_regressed_on_one_and_zero() -> None:
    """Sung et al. 2018, equations 1 and 2, a sigmoid behind the relation module (section 3.4)."""
    support, asked, network = vectors(6), vectors(6, seed=3), mlp()
    learner = create_learner("relation", network, hidden=8)
    ours, theirs = (numbers(network(s.image.double())) for s in (support, asked))
    first, _, last = learner.compare.score
    total = 0.0
    for one, label in zip(theirs, asked.label.tolist(), strict=True):
        for c in range(3):
            pair = np.concatenate([ours[support.label.numpy() == c].mean(0), one])
            hidden = np.maximum(numbers(first.weight) @ pair + numbers(first.bias), 0)
            score = 1 / (1 + np.exp(-(numbers(last.weight) @ hidden + numbers(last.bias))))
            total += float((score[0] - (c == label)) ** 2)
    assert float(learner.backward([Episode(support, asked)], scale=1.0)[0]) == pytest.approx(
        total / 6, rel=1e-10
    )


def test_siamese_is_a_logistic_regression_on_what_is_apart() -> None:
    """Koch et al. 2015, sections 3.1 and 3.2: ``p = sigmoid(sum a |h - h'|)`` and its cross-entropy, here
    with a constant and with same and different pairs counting alike."""
    compare = Siamese(4, "weighted-l1").double()
    with torch.no_grad():
        compare.weight += torch.tensor([0.3, -0.2, 0.1, 0.0])
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(3, 4)), generator.normal(size=(5, 4))
    same = np.arange(3)[:, None] == np.arange(5) % 3
    alike, apart = [], []
    for i, h in enumerate(one):
        for j, k in enumerate(other):
            p = 1 / (1 + np.exp(-(np.abs(h - k) @ numbers(compare.weight) + numbers(compare.bias))))
            (alike if same[i, j] else apart).append(-np.log(p if same[i, j] else 1 - p))
    found = compare.pair_loss(
        compare.pair(torch.from_numpy(one), torch.from_numpy(other)), torch.from_numpy(same).double()
    )
    assert float(found.detach()) == pytest.approx((np.mean(alike) + np.mean(apart)) / 2, rel=1e-10)
