"""The plain form of a predictor: torch's and MONAI's own layers, for a hospital that has only MONAI."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from medmeta.learners.comparing import ComparingPredictor, Matching, Relation, Siamese
from medmeta.learners.predictor import LinearPredictor, unit_length
from medmeta.learners.protocol import LearnerError, Predictor
from medmeta.networks import are_tokens


def plain_network(predictor: Predictor) -> nn.Sequential:
    """Give a predictor as a network of torch's and MONAI's own modules, for a bundle that needs MONAI alone.

    Linear heads, prototypes among them, are one layer. What compares a query with the support becomes a small
    perceptron whose weights hold the support's features: relation and Siamese networks are one in the query,
    and the logarithm of a sum of attention is softplus after softplus.

    Args:
        predictor: what ``adapt`` gave.

    Returns:
        ``Sequential(backbone, …, head)`` with the adapted weights; its logits equal the predictor's (those of
        a contrastive Siamese network but for a term that all classes share).

    Raises:
        LearnerError: where predicting needs medmeta (``mann``, ``local-prototype``, ``in-context``, trees or
            mirrored views), or a network that is neither torch's nor MONAI's, or one that gives several
            outputs.

    Example:
        >>> from medmeta.episodes import Examples
        >>> from medmeta.learners import create_learner
        >>> support = Examples(torch.randn(4, 6), torch.tensor([0, 0, 1, 1]), ("benign", "malignant"))
        >>> plain_network(create_learner("prototypical", torch.nn.Linear(6, 3)).adapt(support))
        Sequential(
          (0): Linear(in_features=6, out_features=3, bias=True)
          (1): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    if isinstance(predictor, ComparingPredictor):
        dense, head = False, _comparing(predictor)
    elif isinstance(predictor, LinearPredictor):
        between = [] if isinstance(predictor.between, nn.Identity) else [predictor.between]
        dense, head = predictor.dense, [*between, predictor.head]
    else:
        raise LearnerError(
            "a predictor that torch's own layers can express",
            found=type(predictor).__name__,
            cure="That one runs with medmeta only; adapt with e.g. proto-maml, prototypical or ridge.",
        )
    _refuse_foreign(predictor.network)
    return nn.Sequential(predictor.network, *_pooling(predictor, dense), *head).eval().requires_grad_(False)


def _pooling(predictor: LinearPredictor | ComparingPredictor, dense: bool) -> list[nn.Module]:
    """What makes one vector an image of the backbone's output, where it gives more."""
    like = next(predictor.parameters())
    with torch.no_grad():
        output = predictor.network(torch.zeros(1, *predictor.example_shape).to(like))
    if not isinstance(output, Tensor):
        raise LearnerError(
            "a backbone with one output",
            found=f"{type(predictor.network).__name__}, which gives {len(output)}",
            cure="Take one that gives a tensor, e.g. medmeta.networks.encoder or unet.",
        )
    if dense or output.ndim == 2:
        return []
    if are_tokens(output, predictor.example_shape[1:]):
        return [nn.AdaptiveAvgPool2d((1, output.shape[2])), nn.Flatten()]  # the mean token
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[output.ndim - 3]
    return [pool(1), nn.Flatten()]


def _comparing(predictor: ComparingPredictor) -> list[nn.Module]:
    compare, support, target = predictor.compare, predictor.support, predictor.target
    with torch.no_grad():
        if isinstance(compare, Relation):
            return _relation(compare, support, target)
        if isinstance(compare, Siamese):
            return _siamese(compare, support, target)
        assert isinstance(compare, Matching)
        return _matching(compare, support, target)


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0]).to(weight)
    layer.load_state_dict(
        {"weight": weight, "bias": torch.zeros_like(weight[:, 0]) if bias is None else bias}
    )
    return layer


def _relation(compare: Relation, support: Tensor, target: Tensor) -> list[nn.Module]:
    """``W [mean; query] + b`` is linear in the query once the class means are known."""
    first, _, last = compare.score
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    means = (target / target.sum(0)).T @ support
    size, way = support.shape[1], target.shape[1]
    of_mean, of_query = first.weight[:, :size], first.weight[:, size:]
    hidden = _linear(of_query.repeat(way, 1), (means @ of_mean.T + first.bias).flatten())
    scores = torch.block_diag(*[last.weight] * way)
    return [hidden, nn.ReLU(), _linear(scores, last.bias.expand(way).clone())]


def _siamese(compare: Siamese, support: Tensor, target: Tensor) -> list[nn.Module]:
    """``|a - b| = relu(a - b) + relu(b - a)``; a squared distance is linear, but for what classes share."""
    share = (target / target.sum(0)).T
    bias = compare.bias.expand(len(share))
    if compare.metric == "contrastive":
        return [_linear(2 * share @ support, bias.exp() - share @ support.square().sum(1))]
    each = torch.eye(support.shape[1]).to(support).repeat(len(support), 1)
    apart = _linear(torch.cat([each, -each]), torch.cat([-support.flatten(), support.flatten()]))
    mean = torch.kron(share.contiguous(), compare.weight[None])
    return [apart, nn.ReLU(), _linear(torch.cat([mean, mean], 1), bias.clone())]


def _matching(compare: Matching, support: Tensor, target: Tensor) -> list[nn.Module]:
    near = compare.log_scale.exp() * nn.functional.normalize(support, dim=1, eps=1e-6)
    start = [unit_length(support.shape[1], dense=False).to(support), _linear(near), nn.LogSoftmax(1)]
    return [*start, *_log_sums(target)]


def _log_sums(target: Tensor) -> list[nn.Module]:
    """Layers for ``log(sum(exp(x)))`` over each class's entries of ``x``, two by two.

    ``log(e^a + e^b) = a + softplus(b - a)``, and ``a = softplus(a) - softplus(-a)`` carries a value along.
    """
    groups = [target[:, c].nonzero().flatten().tolist() for c in range(target.shape[1])]
    before = torch.eye(len(target)).to(target)  # what of the last layer's output makes each value
    layers: list[nn.Module] = []
    for _ in range(math.ceil(math.log2(max(map(len, groups))))):
        rows: list[Tensor] = []
        parts: list[list[int]] = []
        after: list[list[int]] = []
        for group in groups:
            pairs = [group[i : i + 2] for i in range(0, len(group), 2)]
            after.append([len(parts) + i for i in range(len(pairs))])
            for one, *other in pairs:
                parts.append([len(rows) + i for i in range(2 + len(other))])
                rows += [before[one], -before[one], *(before[o] - before[one] for o in other)]
        layers += [_linear(torch.stack(rows)), nn.Softplus()]
        before = torch.zeros(len(parts), len(rows)).to(target)
        for value, (plus, minus, *more) in zip(before, parts, strict=True):
            value[[plus, *more]], value[minus] = 1.0, -1.0
        groups = after
    return [*layers, _linear(before[[group[0] for group in groups]])]


def _refuse_foreign(network: nn.Module) -> None:
    classes = {f"{type(m).__module__}.{type(m).__qualname__}" for m in network.modules()}
    foreign = sorted(c for c in classes if not c.startswith(("torch.", "monai.")))
    if foreign:
        raise LearnerError(
            "a backbone made of torch's and MONAI's modules",
            found=", ".join(foreign[:3]),
            cure="Ship that class beside the bundle, or meta-train a network of MONAI.",
        )
