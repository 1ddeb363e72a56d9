"""Ridge, prototypes, memory and comparisons against independent transcriptions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestCentroid

from medmeta.episodes.examples import Episode, Examples
from medmeta.learners import create_learner, load_weights
from medmeta.learners.batch import Piece
from medmeta.learners.comparing import Matching, Relation, Siamese
from medmeta.learners.head import Head, class_sums, logits, prototype_head
from medmeta.learners.loss import balance, example_loss, one_hot, set_loss
from medmeta.learners.memory import address, least_used, write
from medmeta.learners.ridge import moments, ridge
from tests.learners.tasks import close, lesions, mlp, vectors

DOUBLE = torch.float64


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 12), st.integers(1, 15), st.floats(0.01, 10.0), st.integers(0, 99))
def test_ridge_is_that_of_scikit_learn(n: int, size: int, penalty: float, seed: int) -> None:
    """More features than points, too, and weighted points."""
    feature, label = draw(n, size, seed=seed), torch.arange(n) % 3
    hot, weight = one_hot(label, 3, DOUBLE), torch.tensor([0.5, 1.0, 2.0], dtype=DOUBLE)
    head = ridge(*moments(feature, hot, weight)[:2], penalty)
    theirs = Ridge(alpha=penalty).fit(feature.numpy(), hot.numpy(), sample_weight=weight[label].numpy())
    close(head.weight, torch.tensor(theirs.coef_, dtype=DOUBLE), 1e-8)
    close(head.bias, torch.tensor(theirs.intercept_, dtype=DOUBLE), 1e-8)
    elsewhere = draw(5, size, seed=seed + 1)
    guess = logits(elsewhere, head).numpy()
    np.testing.assert_allclose(guess, theirs.predict(elsewhere.numpy()), rtol=1e-6, atol=1e-8)


def test_ridge_in_half_precision_is_nearly_that_in_full() -> None:
    support, image = vectors(n=30), vectors(seed=2).image
    full = create_learner("ridge", mlp().float())
    half = create_learner("ridge", mlp().bfloat16())
    expected = full.adapt(support)(image)
    assert float((half.adapt(support)(image.bfloat16()) - expected).abs().max()) < 0.3
    with torch.autocast("cpu", torch.bfloat16):
        found = full.adapt(support)
    assert float((found(image) - expected).abs().max()) < 0.3


def test_ridge_learner_on_voxels_is_ridge_on_points() -> None:
    learner, support = create_learner("ridge", torch.nn.Conv2d(1, 3, 3, padding=1).double()), lesions()
    predictor = learner.adapt(support)
    with torch.no_grad():
        feature = learner.network(support.image.double()).permute(0, 2, 3, 1).reshape(-1, 3)
    label = support.label.flatten()
    weight = balance(one_hot(support.label, 2, DOUBLE)).weight
    theirs = Ridge(alpha=0.1 * len(label)).fit(
        feature.numpy(), np.eye(2)[label.numpy()], sample_weight=weight[label].numpy()
    )
    close(predictor.head.weight.flatten(1), 10 * torch.tensor(theirs.coef_), 1e-8)


def test_prototypes_are_nearest_centroids() -> None:
    support, query = vectors(9), vectors(8, seed=3)
    learner = create_learner("prototypical", torch.nn.Linear(5, 5).double())
    with torch.no_grad():
        places = [learner.network(s.image.double()) for s in (support, query)]
    theirs = NearestCentroid().fit(places[0].numpy(), support.label.numpy()).predict(places[1].numpy())
    ours = learner.adapt(support)(query.image.double()).argmax(1)
    assert ours.tolist() == theirs.tolist()


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 5), st.integers(1, 8), st.integers(0, 99))
def test_a_linear_head_is_the_squared_distance(way: int, size: int, seed: int) -> None:
    """-|f - c|^2 and 2 c.f - |c|^2 differ by something that is the same for every class."""
    feature, centre = draw(6, size, seed=seed), draw(way, size, seed=seed + 1)
    gap = logits(feature, prototype_head(centre)) + (feature.unsqueeze(1) - centre).square().sum(2)
    close(gap, gap.mean(1, keepdim=True).expand_as(gap), 1e-10)


def test_dense_prototypes_are_masked_averages() -> None:
    feature, label = draw(2, 3, 4, 5), torch.randint(0, 2, (2, 4, 5))
    sums, counts = class_sums(feature, one_hot(label, 2, DOUBLE))
    for c in (0, 1):
        inside = feature.permute(0, 2, 3, 1)[label == c]
        close(sums[c] / counts[c], inside.mean(0), 1e-10)


def test_a_head_is_the_same_map_in_every_dimension() -> None:
    feature, head = draw(5, 3), Head(draw(2, 3), draw(2))
    flat = logits(feature, head)
    for dims in (1, 2, 3):
        close(logits(feature.reshape(5, 3, *[1] * dims), head).reshape(5, 2), flat, 1e-12)


# --- the loss ---


def test_classification_loss_is_cross_entropy_where_shots_are_equal() -> None:
    guess, label = draw(6, 3), torch.arange(6) % 3
    close(set_loss(guess, label), torch.nn.functional.cross_entropy(guess, label), 1e-12)


def test_classes_count_alike_however_many_examples_they_have() -> None:
    guess, label = draw(6, 2), torch.tensor([0, 0, 0, 0, 0, 1])
    each = torch.nn.functional.cross_entropy(guess, label, reduction="none")
    close(set_loss(guess, label), (each[:5].mean() + each[5]) / 2, 1e-12)


def test_segmentation_loss_is_lowest_at_the_truth() -> None:
    label = lesions().label
    target = one_hot(label, 2, DOUBLE)
    right, nothing = 20 * target, torch.zeros_like(target)
    assert float(set_loss(right, label)) < 1e-3
    assert float(set_loss(nothing, label)) > 1.0
    assert float(set_loss(right.flip(1), label)) > float(set_loss(nothing, label))


def test_an_example_without_a_lesion_adds_no_dice() -> None:
    label = lesions().label.clone()
    label[1] = 0
    target = one_hot(label, 2, DOUBLE)
    each = example_loss(10 * target, target, balance(target))
    assert float(each[1]) < 1e-3
    assert float(balance(target).lesion) == 2.0


# --- memory: the paper's equations, transcribed in numpy ---


def numpy_address(key: np.ndarray, memory: np.ndarray, strength: float = 1.0) -> np.ndarray:
    similar = strength * memory @ key / (np.linalg.norm(memory, axis=1) * np.linalg.norm(key))
    return np.exp(similar) / np.exp(similar).sum()


def numpy_write(
    memory: np.ndarray, key: np.ndarray, read: np.ndarray, usage: np.ndarray, gate: float
) -> tuple[np.ndarray, np.ndarray]:
    share = 1 / (1 + np.exp(-gate))
    free = (usage <= np.sort(usage)[0]).astype(float)
    weight = share * read + (1 - share) * free
    wiped = memory.copy()
    wiped[free == 1] = 0
    return wiped + np.outer(weight, key), weight


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.floats(-3, 3))
def test_memory_reads_and_writes_as_written_down(seed: int, gate: float) -> None:
    memory, key = draw(2, 6, 4, seed=seed), draw(2, 4, seed=seed + 1)
    read = torch.softmax(draw(2, 6, seed=seed + 2), 1)
    usage = draw(2, 6, seed=seed + 3).abs()
    found = address(key.unsqueeze(1), memory).squeeze(1)
    written, weight = write(memory, key, read, usage, torch.tensor(gate, dtype=DOUBLE))
    for b in (0, 1):
        close(found[b], torch.tensor(numpy_address(key[b].numpy(), memory[b].numpy())), 1e-10)
        wanted, shares = numpy_write(
            memory[b].numpy(), key[b].numpy(), read[b].numpy(), usage[b].numpy(), gate
        )
        close(written[b], torch.tensor(wanted), 1e-10)
        close(weight[b], torch.tensor(shares), 1e-10)
    assert least_used(usage).sum(1).tolist() == [1.0, 1.0]


def test_memory_takes_the_papers_steps() -> None:
    """A label comes one step late and is bound to the key that waited for it; then the memory is read."""
    learner = create_learner("mann", mlp(), way=3, slots=5)
    controller = learner.memory
    feature, told = draw(1, 4, 4), one_hot(torch.tensor([[2, 0, 1, 1]]).T, 3, DOUBLE).squeeze(2)[None]
    memory, usage, read = np.full((5, 64), 1e-6), np.arange(5) / 1e3, np.eye(5)[0]  # no two used alike
    key, before, state = np.full(64, 1e-6), torch.zeros(1, 3, dtype=DOUBLE), controller.begin(feature[:, 0])
    state = state._replace(usage=torch.tensor(usage)[None])
    names = controller.label.weight.detach().numpy()
    for step in range(4):
        _, state = controller(feature[:, step], before, state)
        bound = key + names @ before[0].numpy()
        memory, written = numpy_write(memory, bound, read, usage, controller.gate.item())
        key = state.key[0].detach().numpy()
        read = numpy_address(key, memory, controller.log_strength.exp().item())
        usage = 0.95 * usage + read + written
        before = told[:, step]
        for ours, theirs in ((state.memory, memory), (state.read, read), (state.usage, usage)):
            close(ours[0], torch.tensor(theirs), 1e-10)


def test_queries_of_a_memory_do_not_see_each_other() -> None:
    predictor, image = create_learner("mann", mlp(), way=3).adapt(vectors()), vectors(seed=4).image.double()
    close(predictor(image)[2:3], predictor(image[2:3]), 1e-10)


def test_episodes_side_by_side_are_those_one_after_the_other() -> None:
    """Of several shapes, too."""
    tasks = [Episode(vectors(n, seed=n), vectors(4, seed=9)) for n in (6, 3, 6)]
    found = []
    for batches in ([tasks], [[t] for t in tasks]):
        learner = create_learner("mann", mlp(), way=3)
        learner.load_state_dict(found[0][2] if found else learner.state_dict())
        losses = torch.cat([learner.backward(batch, scale=0.5) for batch in batches])
        found.append((losses, [p.grad for p in learner.parameters()], learner.state_dict()))
    close(found[0][0], found[1][0], 1e-12)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        close(one, other, 1e-12)


def test_memory_learns_to_bind_labels_that_change_every_episode() -> None:
    """Clusters whose names are drawn anew each time: only memory can tell which is which."""
    torch.manual_seed(0)
    learner = create_learner("mann", torch.nn.Linear(16, 16), way=3, slots=16, width=32)
    optimiser = torch.optim.Adam(learner.parameters(), 5e-3)
    g = torch.Generator().manual_seed(0)

    def draw_task() -> Episode:
        centre, label = torch.randn(3, 16, generator=g), torch.arange(6) % 3
        noise = 0.5 * torch.randn(2, 6, 16, generator=g)
        support, query = (Examples(centre[label] + n, label, ("a", "b", "c")) for n in noise)
        return Episode(Examples(support.image[:3], label[:3], support.classes), query)

    for _ in range(150):
        optimiser.zero_grad()
        learner.backward([draw_task() for _ in range(8)], scale=1 / 8)
        optimiser.step()
    right = [
        (learner.adapt(task.support)(task.query.image).argmax(1) == task.query.label).float().mean()
        for task in (draw_task() for _ in range(30))
    ]
    assert float(torch.stack(right).mean()) > 0.75  # a third is chance


# --- comparisons ---


@pytest.mark.parametrize("metric", ["weighted-l1", "contrastive"])
def test_siamese_pairs_are_symmetric(metric: str) -> None:
    compare = Siamese(4, metric).double()
    one, other = draw(3, 4), draw(5, 4, seed=1)
    close(compare.pair(one, other), compare.pair(other, one).T, 1e-12)
    same = compare.pair(one, one).diagonal()
    close(same, same.mean().expand(3), 1e-9)
    assert bool((compare.pair(one, other) <= same[0] + 1e-9).all())


def test_contrastive_loss_is_that_of_the_paper() -> None:
    compare = Siamese(2, "contrastive").double()
    one, other = draw(3, 2), draw(4, 2, seed=1)
    same = (torch.arange(3).unsqueeze(1) == torch.arange(4)).to(DOUBLE)
    far, margin = torch.cdist(one, other), compare.bias.exp().detach().sqrt()
    pull, push = same * far**2, (1 - same) * (margin - far).clamp(min=0) ** 2
    wanted = (pull.sum() / same.sum() + push.sum() / (1 - same).sum()) / 2
    close(compare.pair_loss(compare.pair(one, other), same).detach(), wanted, 1e-5)


def test_matching_attends_to_the_support() -> None:
    query, support = draw(3, 4), draw(5, 4, seed=1)
    target = one_hot(torch.tensor([0, 1, 1, 0, 2]), 3, DOUBLE)
    share = torch.exp(Matching(torch.nn.Parameter(torch.zeros((), dtype=DOUBLE)))(query, support, target))
    cosine = torch.nn.functional.cosine_similarity(query.unsqueeze(1), support.unsqueeze(0), dim=2)
    close(share.detach(), torch.softmax(cosine, 1) @ target, 1e-10)


def test_relation_scores_are_regressed_on_being_the_same() -> None:
    compare = Relation(4, 8).double()
    query, support = draw(3, 4), draw(4, 4, seed=1)
    target = one_hot(torch.tensor([0, 1, 0, 1]), 2, DOUBLE)
    score = compare(query, support, target)
    mean = support[[0, 2]].mean(0)
    close(score[1, 0], compare.score(torch.cat([mean, query[1]])).squeeze(), 1e-10)


def test_relation_scores_weigh_a_query_by_its_class() -> None:
    """Nine queries of one class and one of the other: the best single answer is undecided."""
    compare, label = Relation(4, 8).double(), torch.tensor([0] * 9 + [1])
    target = one_hot(label, 2, DOUBLE)
    piece = Piece(torch.zeros(10, 1), target, balance(target), 1.0)
    undecided = torch.zeros(2, dtype=DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(compare.loss(undecided.expand(10, 2), target, piece), undecided)
    close(slope + 1, torch.ones(2), 1e-12)
    even, guess = one_hot(torch.arange(10) % 2, 2, DOUBLE), draw(10, 2)
    piece = Piece(torch.zeros(10, 1), even, balance(even), 1.0)
    close(compare.loss(guess, even, piece), (guess.sigmoid() - even).square().sum(1).mean(), 1e-12)


def test_the_margin_of_a_contrastive_loss_stays() -> None:
    """Learnt, it would shrink, and the features with it, which tells no class from another."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8)).double()
    learner = create_learner("siamese", network, metric="contrastive", margin=2.0)
    optimiser = torch.optim.Adam(learner.parameters(), 1e-2)
    for step in range(100):
        optimiser.zero_grad()
        learner.backward([task(step)], scale=1.0)
        optimiser.step()
    assert float(learner.compare.bias.exp()) == pytest.approx(4.0)
    unseen = [task(1000 + i) for i in range(8)]
    with torch.no_grad():
        apart = [torch.pdist(learner.feature(e.query.image.double())).max() for e in unseen]
    assert float(torch.stack(apart).mean()) > 1.5


def test_weights_of_a_margin_that_was_learnt_are_taken() -> None:
    old = create_learner("siamese", mlp(), metric="contrastive", margin=0.28)
    new = create_learner("siamese", mlp(), metric="contrastive")
    load_weights(new, old.state_dict())
    support = vectors()
    assert torch.equal(new.adapt(support)(support.image.double()), old.adapt(support)(support.image.double()))


@pytest.mark.parametrize(("scale", "factor"), [(None, 1.0), (3.0, 3.0)])
def test_prototypes_count_squared_distances_over_the_root_of_their_size(
    scale: float | None, factor: float
) -> None:
    support, network = vectors(way=2), mlp(feature=16)
    guess = create_learner("prototypical", network, scale=scale).adapt(support)(support.image.double())
    feature = network(support.image.double()).detach()
    centre = torch.stack([feature[support.label == c].mean(0) for c in range(2)])
    far = torch.cdist(feature, centre).square() * factor / 4
    close(guess[:, 0] - guess[:, 1], far[:, 1] - far[:, 0], 1e-10)


@pytest.mark.parametrize(
    "name", ["prototypical", "matching", "relation", "siamese", "ridge", "proto-maml", "maml", "reptile"]
)
def test_the_family_learns_to_learn(name: str) -> None:
    """Meta-training makes new tasks easier: the loss on tasks never trained on falls."""
    torch.manual_seed(0)
    options = {"way": 3} if name in ("maml", "reptile") else {}
    network = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8)).double()
    learner = create_learner(name, network, **options)
    optimiser = torch.optim.Adam(learner.parameters(), 1e-2)
    unseen = [task(1000 + i) for i in range(8)]

    def loss() -> float:
        optimiser.zero_grad()
        return float(learner.backward(unseen, scale=1.0).mean())

    before = loss()
    for step in range(40):
        optimiser.zero_grad()
        learner.backward([task(4 * step + i) for i in range(4)], scale=0.25)
        optimiser.step()
    assert loss() < before


def task(seed: int):  # type: ignore[no-untyped-def]
    """Clusters told apart by the first two coordinates; the others are loud noise."""

    g = torch.Generator().manual_seed(seed)
    centre = torch.cat([2 * torch.randn(3, 2, generator=g), torch.zeros(3, 3)], 1)
    spread = torch.tensor([0.3, 0.3, 2.0, 2.0, 2.0])
    label = torch.arange(6) % 3
    sets = [
        Examples(centre[label] + spread * torch.randn(6, 5, generator=g), label, ("a", "b", "c"))
        for _ in range(2)
    ]
    return Episode(*sets)
