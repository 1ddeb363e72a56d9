"""Probabilities that mean what they say, and a flag on what is unlike the support."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import binomtest
from torch import Tensor, nn

from medmeta.clinical.calibration import LeftOut, calibrate, false_alarms, fit_temperature, least_volume
from medmeta.clinical.confidence import Confidence, folded, likeness
from medmeta.clinical.whole import seen_whole
from medmeta.episodes import Examples, generator_of, support_examples
from medmeta.learners import create_learner, plain_network
from medmeta.networks import build, encoder, unet
from medmeta.volumes import Plan, Prepared

PLAN = Plan(3, (2.0, 2.0, 2.0), (16, 16, 16), 1)
WHOLE = Plan(3, (2.0, 2.0, 2.0), (24, 24, 24), 1, whole=True)


def patient(
    n: int, *, noise: float = 0.5, contrast: float = 1.0, lesion: float = 1.0, kind: str = "x"
) -> Prepared:
    """Tissue of smooth texture in air with one lesion; standardised as a plan does."""
    rng = np.random.default_rng(n)
    x, y, z = np.indices((24, 24, 24)) - 12
    body = x**2 + y**2 < 100
    tissue = gaussian_filter(rng.normal(size=body.shape), 2) * 4
    centre = rng.integers(-4, 5, 3)
    mask = ((np.stack([x, y, z]) - centre[:, None, None, None]) ** 2).sum(0) < rng.integers(9, 17)
    image = np.where(body, contrast * (3 + tissue + lesion * 2 * mask), contrast - 1)
    image = image + noise * body * rng.normal(size=body.shape)
    image = (image - image.mean()) / image.std()
    return Prepared(
        torch.from_numpy(image)[None].float(),
        torch.from_numpy(mask & body).to(torch.uint8) * (lesion > 0),
        torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64)),
        f"{kind}{n}",
        kind,
    )


def calibration_error(probability: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error in ten bins (Guo et al. 2017, eq. 3)."""
    bins = np.minimum((probability * 10).astype(int), 9)
    error = 0.0
    for b in np.unique(bins):
        here = bins == b
        error += here.mean() * abs(probability[here].mean() - right[here].mean())
    return error


def threshold_network(scale: float) -> Callable[[Examples], nn.Sequential]:
    """From a support to a network that compares brightness with the middle between tissue and lesion."""

    def adapt(support: Examples) -> nn.Sequential:
        lesion = support.image[:, 0][support.label == 1].mean()
        rest = support.image[:, 0][(support.label == 0) & (support.image[:, 0] > 0)].mean()
        smooth, head = nn.Conv3d(1, 1, 3, padding=1), nn.Conv3d(1, 2, 1)
        nn.init.constant_(smooth.weight, 1 / 27)
        nn.init.zeros_(smooth.bias)
        head.weight.data[:] = torch.tensor([-scale, scale]).reshape(2, 1, 1, 1, 1)
        head.bias.data[:] = torch.tensor([scale, -scale]) * (lesion + rest) / 2
        return nn.Sequential(smooth, head).requires_grad_(False)

    return adapt


def test_the_temperature_of_logits_of_known_overconfidence() -> None:
    rng = torch.Generator().manual_seed(0)
    truth = torch.randn(20000, generator=rng)  # log-odds
    label = (torch.rand(20000, generator=rng) < torch.sigmoid(truth)).long()
    logits = 6 * torch.stack([torch.zeros(20000), truth], 1)
    found = fit_temperature([LeftOut(logits, label, torch.full((20000,), 1 / 20000))])
    assert found == pytest.approx(6, rel=0.05)


def test_calibration_error_falls_on_new_patients() -> None:
    support = [patient(n) for n in range(5)]
    examples = support_examples(support, PLAN, generator_of(0), crops=4)
    adapt = threshold_network(20.0)
    network = adapt(examples)
    sure = calibrate(adapt, examples, support, PLAN, network)
    assert sure.temperature > 2
    assert sure.least_ml > 0
    errors = []
    for made in (network, folded(network, sure.temperature)):
        soft = [torch.softmax(made(patient(n).image[None])[0], 0) for n in range(100, 120)]
        most = torch.cat([s.max(0)[0].flatten() for s in soft]).numpy()
        mask = [patient(n).mask for n in range(100, 120)]
        right = torch.cat([(s.argmax(0) == m).flatten() for s, m in zip(soft, mask, strict=True)]).numpy()
        errors.append(calibration_error(most, right))
    print(f"segmentation: calibration error {errors[0]:.4f} -> {errors[1]:.4f}")  # noqa: T201
    assert errors[1] < 0.6 * errors[0]


def segmenter() -> Callable[[Examples], nn.Sequential]:
    torch.manual_seed(0)
    learner = create_learner("prototypical", build(unet(3, 1, base=4)))
    return lambda support: plain_network(learner.adapt(support))


def flagged(sure: Confidence, described: list[Tensor]) -> float:
    assert sure.likeness is not None
    assert sure.likeness.thresholds is not None
    return float(np.mean([sure.judged(0.5, d)["abstain"] for d in described]))


ALIENS = {"noise": {"noise": 3.0}, "contrast": {"contrast": -1.0}}


@pytest.mark.parametrize("shots", [3, 5])
def test_an_alien_scan_is_flagged_and_one_like_the_support_is_not(shots: int) -> None:
    from medmeta.clinical.calibration import _look

    support = [patient(n) for n in range(shots)]
    examples = support_examples(support, PLAN, generator_of(0), crops=2)
    adapt = segmenter()
    network = adapt(examples)
    sure = calibrate(adapt, examples, support, PLAN, network)
    rates = {
        name: flagged(sure, [_look(network, PLAN, patient(n, **how), 2)[1] for n in range(200, 220)])
        for name, how in {"like": {}, **ALIENS}.items()
    }
    print(f"segmentation, {shots} shots, flagged: {rates}")  # noqa: T201
    assert rates["like"] <= 0.15
    assert min(rates[name] for name in ALIENS) >= 0.9


def test_classification_is_calibrated_and_flags_aliens() -> None:
    def scan(n: int, **how: float) -> Prepared:
        kind = "b" if n % 2 else "a"
        return patient(n, lesion=1.2 if kind == "b" else 0.4, kind=kind, **how)

    torch.manual_seed(0)
    learner = create_learner("prototypical", build(encoder(3, 1, base=4)))

    def adapt(support: Examples) -> nn.Sequential:
        return folded(plain_network(learner.adapt(support)), 0.0003)  # 3000 times as sure

    support = [scan(n) for n in range(10)]
    examples = support_examples(support, WHOLE, generator_of(0))
    network = adapt(examples)
    sure = calibrate(adapt, examples, support, WHOLE, network)
    new = range(300, 360)
    errors = []
    for made in (network, folded(network, sure.temperature)):
        soft = torch.stack([torch.softmax(made(scan(n).image[None])[0], 0) for n in new]).detach()
        right = soft.argmax(1).numpy() == np.array([n % 2 for n in new])
        errors.append(calibration_error(soft.max(1)[0].numpy(), right))
    rates = {
        name: flagged(sure, [seen_whole(network, scan(n, **how).image)[1] for n in new])
        for name, how in {"like": {}, **ALIENS}.items()
    }
    print(f"classification: T {sure.temperature:.2f}, calibration error {errors}, flagged {rates}")  # noqa: T201
    assert errors[1] < 0.6 * errors[0]
    assert rates["like"] <= 0.15
    assert min(rates[name] for name in ALIENS) >= 0.9


def test_one_patient_cannot_be_left_out_and_that_is_said() -> None:
    support = [patient(0)]
    examples = support_examples(support, PLAN, generator_of(0))
    adapt = segmenter()
    sure = calibrate(adapt, examples, support, PLAN, adapt(examples))
    assert (sure.temperature, sure.least_ml) == (1.0, 0.0)
    assert "nothing could be left out" in sure.about()["why"]
    assert sure.judged(0.9, torch.ones(2, sure.likeness.centre.shape[1]))["abstain"] is None  # type: ignore[union-attr]


def test_false_alarms_on_patients_without_a_tumour() -> None:
    examples = support_examples([patient(n) for n in range(3)], PLAN, generator_of(0))
    network = threshold_network(5.0)(examples)
    grid = replace(PLAN, patch=(24, 24, 24))  # the phantom's: one window, so a voxel by hand is a voxel
    # every other one has something as bright as a lesion that is none
    looks = [patient(n, lesion=float(n % 2)) for n in range(400, 412)]
    free = [replace(scan, mask=torch.zeros(24, 24, 24, dtype=torch.uint8)) for scan in looks]
    by_hand = [int((network(scan.image[None])[0].argmax(0) > 0).sum()) * 8 / 1000 for scan in free]
    bright = sorted(ml for ml in by_hand if ml > 0)
    assert 3 <= len(bright) <= len(free) - 3
    found = false_alarms(network, grid, free, 2)
    assert (found["scans"], found["alarms"]) == (12, len(bright))
    wilson = binomtest(len(bright), 12).proportion_ci(0.95, method="wilson")  # a scan each: scipy's
    assert [found[k] for k in ("patients", "rate", "low", "high")] == [
        12,
        round(len(bright) / 12, 4),
        round(float(wilson.low), 4),
        round(float(wilson.high), 4),
    ]
    least = (bright[0] + bright[-1]) / 2
    fewer = sum(ml >= least for ml in bright)
    assert 0 < fewer < len(bright)
    assert false_alarms(network, grid, free, 2, least_ml=least)["alarms"] == fewer
    # the same scans four times more of each patient make nothing surer
    again = false_alarms(network, grid, [scan for scan in free for _ in range(4)], 2)
    assert (again["scans"], again["alarms"]) == (48, 4 * len(bright))
    assert [again[k] for k in ("patients", "rate", "low", "high")] == [
        found[k] for k in ("patients", "rate", "low", "high")
    ]


def test_the_least_volume_is_half_of_the_least_hit() -> None:
    none = torch.zeros(0)
    parts = [LeftOut(none, none, none, ml, hit) for ml, hit in ((4.0, True), (9.0, True), (0.1, False))]
    assert least_volume(parts) == 2.0


def test_scans_of_one_patient_are_one_patient_to_the_thresholds() -> None:
    def drawn(n: int) -> Tensor:
        generator = torch.Generator().manual_seed(n)
        return torch.stack([torch.randn(6, generator=generator), torch.rand(6, generator=generator) + 0.5])

    once = likeness([[drawn(n)] for n in range(4)], 2)
    thrice = likeness([[drawn(n)] * 3 for n in range(4)], 2)
    assert once.thresholds == pytest.approx(thrice.thresholds, rel=1e-5)
    assert torch.allclose(once.centre, thrice.centre)


def test_a_patient_with_many_scans_is_left_out_with_all_of_them() -> None:
    support = [patient(n) for n in range(3)]
    adapt = segmenter()
    made = []
    for scans in (support, [*support, *support]):  # as where one scan has two segments of a type
        examples = support_examples(support, PLAN, generator_of(0))
        made.append(calibrate(adapt, examples, scans, PLAN, adapt(examples)).likeness)
    once, twice = (like.thresholds for like in made if like is not None and like.thresholds is not None)
    assert twice == pytest.approx(once, rel=1e-4)


@pytest.mark.parametrize(("way", "n"), [(2, 5), (3, 5), (2, 1)])
def test_few_that_are_all_right_make_no_other_one_sure(way: int, n: int) -> None:
    """Laplace: of n that were right, the next one is with n + 1 in n + 2 (Platt 1999 for logits)."""
    logits, label = torch.eye(way)[:1] * 2, torch.tensor([0])
    found = fit_temperature([LeftOut(logits, label, torch.ones(1))] * n, doubt=1 / (n + 2))
    assert float(torch.softmax(logits[0] / found, 0)[0]) == pytest.approx((n + 1) / (n + 2), abs=0.005)


def test_a_support_that_is_told_apart_is_no_proof() -> None:
    support = [patient(n, lesion=1.0, kind="ab"[n % 2]) for n in range(6)]
    bright = [replace(p, image=p.image + (3.0 if p.tumour == "b" else 0.0)) for p in support]

    def adapt(_: Examples) -> nn.Sequential:
        head = nn.Linear(1, 2)
        head.weight.data[:] = torch.tensor([[-5.0], [5.0]])
        head.bias.data[:] = torch.tensor([7.5, -7.5])
        return nn.Sequential(nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten()), head)

    examples = support_examples(bright, WHOLE, generator_of(0))
    sure = calibrate(adapt, examples, bright, WHOLE, adapt(examples))
    assert sure.about()["why"] == "5 of the support left out in turn"
    soft = torch.softmax(folded(adapt(examples), sure.temperature)(examples.image), 1).amax(1).detach()
    assert float(soft.mean()) == pytest.approx(6 / 7, abs=0.01)
