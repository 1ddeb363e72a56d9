"""The answer in words, from the figures alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medmeta.evaluation.advice import Advice
from medmeta.evaluation.differences import Difference
from medmeta.evaluation.intervals import Interval
from medmeta.evaluation.labels_saved import Needed
from medmeta.evaluation.records import Judged

MANY, DRAWS = 50, 10
"""Patients and drawn supports below which a warning is given."""
FEW = 10
"""Patients below which nothing is called sure, whatever a test says: it takes their spread for known."""
LEVEL = 0.05
"""Of p, adjusted for the best being compared with every other method, below which its lead is called sure."""


def answer(advice: Advice, names: Mapping[str, str]) -> tuple[str, str]:
    """One paragraph: what to use; how sure that is, what the ordinary way needs, whether to label more.

    Args:
        advice: of one tumour type.
        names: readable name of each method.

    Returns:
        The first sentence and the others.
    """
    score = f"{advice.metric} {_score(advice.score)}"
    if not advice.of_use:
        first = (
            f"{advice.tumour}: with {_labels(advice.shot)}, no method that was judged is of use: of the "
            f"best, the {names[advice.use]}, the {score}{', no better than chance' if advice.chance else ''}."
        )
        return first, _more(advice, names)
    first = f"{advice.tumour}: with {_labels(advice.shot)}, use the {names[advice.use]}: {score}."
    others = [
        _above_chance(advice),
        _sureness(advice, names),
        _saved(advice, names),
        _more(advice, names),
        _fewer(advice, names),
    ]
    return first, " ".join(s for s in others if s)


def _labels(number: float) -> str:
    text = f"{number:.0f}"
    return f"{text} labelled patient{'' if text == '1' else 's'}"


def _score(interval: Interval) -> str:
    return f"{interval.mean:.2f} (95 % interval {_range(interval)})"


def _range(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return "n/a"
    return f"{interval.low:.2f} to {interval.high:.2f}"


def _by(one: Difference) -> str:
    interval, p = one.interval, one.adjusted
    said = "n/a" if p is None else "< 0.001" if p < 0.001 else f"= {p:.2g}"
    adjusted = "" if p == one.p else "adjusted "
    return f"{abs(interval.mean or 0.0):.2f} (difference {_range(interval)}, {adjusted}p {said})"


def _sure(one: Difference) -> bool:
    """Whether there is a difference for all that the best was picked after looking; never without a test."""
    return _tested(one) and one.patients >= FEW


def _tested(one: Difference) -> bool:
    return one.adjusted is not None and one.adjusted < LEVEL


def _above_chance(advice: Advice) -> str:
    low = advice.score.low
    if not advice.chance or (low is not None and low > advice.chance):
        return ""
    return f"Whether that is better than chance ({advice.chance:.2f}) is not sure."


def _sureness(advice: Advice, names: Mapping[str, str]) -> str:
    if advice.rival is None or advice.lead is None:
        return "Nothing else was judged beside it."
    if advice.lead.p is None and advice.lead.interval.mean == 0:
        return f"The {names[advice.rival]} scores the same, on the same patients and supports."
    if advice.lead.p is None:
        sure = "How sure this is cannot be told: it is"
    elif _sure(advice.lead):
        alone = " for the one support that was drawn" if advice.draws == 1 else ""
        sure = f"This is sure{alone}: it is"
    elif _tested(advice.lead):
        sure = f"From fewer than {FEW} patients nothing is called sure: it is"
    else:
        sure = "This is not sure: it is only"
    return (
        f"{sure} {_by(advice.lead)} ahead of the next best, the {names[advice.rival]}, "
        "on the same patients and supports."
    )


def _saved(advice: Advice, names: Mapping[str, str]) -> str:
    """What meta-training saves, or that it saves nothing."""
    learnt, plain, needed = advice.learnt, advice.plain, advice.needed
    behind = _behind(advice, names)
    if learnt is not None and advice.use == plain:
        return f"{behind}{_nothing_saved(advice, names)}"
    if plain is None or needed is None:
        return behind.strip()
    same = f"for the same {advice.metric}" if learnt is None else f"to score as the {names[learnt]} does"
    return f"{behind}The best ordinary way, the {names[plain]}, would need {_needed(needed)} {same}."


def _behind(advice: Advice, names: Mapping[str, str]) -> str:
    """How far the best meta-trained way is behind, where it is not the next best, of which it was said."""
    if advice.learnt is None or advice.behind is None or advice.learnt == advice.rival:
        return ""
    sure = "surely" if _sure(advice.behind) else "not surely"
    return f"The {names[advice.learnt]} is {sure} behind, by {_by(advice.behind)}. "


def _nothing_saved(advice: Advice, names: Mapping[str, str]) -> str:
    """A plain way is the one to use."""
    if advice.behind is None or not _sure(advice.behind):
        return "Whether meta-training saves labels here cannot be told."
    text = "Meta-training saves no labels here"
    if advice.plain is not None and advice.needed is not None and advice.needed.labels is not None:
        text += f": the {names[advice.plain]} reaches its score with {_needed(advice.needed)}"
    return f"{text}."


def _needed(needed: Needed) -> str:
    if needed.labels is None:
        text = f"more than the {_labels(needed.most)} that it was judged with"
        return text if needed.low is None else f"{text} (95 % interval {needed.low:.0f} to more)"
    about = "at most " if needed.labels <= needed.least else "about "
    high = f"{needed.high:.0f}" if needed.high is not None else f"more than {needed.most}"
    low = f"{needed.low:.0f}" if needed.low is not None else f"more than {needed.most}"
    ends = f" (95 % interval {low} to {high})" if low != high else ""
    return f"{about}{_labels(needed.labels)}{ends}"


def _more(advice: Advice, names: Mapping[str, str]) -> str:
    found = advice.slope
    if found is None:
        return "Whether to label more cannot be told from one number of labels."
    gain = found.gain
    if gain.mean is None:
        return (
            f"Whether to label more cannot be told: after {found.first} and after {_labels(found.last)} "
            "nobody was judged with the same draw."
        )
    said = (
        f"From {found.first} to {_labels(found.last)} the {names[advice.use]} gained {gain.mean:.2f} a "
        f"doubling ({_range(gain)})"
    )
    verdict = {
        "more": "label more, that still pays.",
        "enough": "labelling more hardly pays.",
        "unknown": "whether labelling more pays cannot be told yet.",
    }
    return f"{said}: {verdict[found.verdict]}"


def _fewer(advice: Advice, names: Mapping[str, str]) -> str:
    parts = [
        f"with {shot} the {names[method]} ({score.mean:.2f}, {_range(score)})"
        for shot, (method, score) in advice.fewer.items()
    ]
    return f"With fewer labels the best is: {', '.join(parts)}." if parts else ""


def cautions(judged: Sequence[Judged]) -> list[str]:
    """The warnings that few patients and few drawn supports ask for."""
    said = [line for one in judged if (line := _few(one))]
    drawn: dict[tuple[str, str, int], set[int]] = {}
    for one in judged:
        for c in one.cases:
            drawn.setdefault((one.task, c.tumour, c.shot), set()).add(c.draw)
    numbers = {len(draws) for draws in drawn.values()}
    if numbers and min(numbers) < DRAWS:
        one_alone = min(numbers) == 1
        said.append(
            f"Only {min(numbers)} support{' was' if one_alone else 's were'} drawn for "
            f"{'each' if len(numbers) == 1 else 'some'} number of labels: how much the choice of the "
            f"labelled patients matters is {'not known' if one_alone else 'known roughly only'}."
        )
    missing = sum(case.missing for one in judged for case in one.cases)
    if missing:
        said.append(
            f"{missing} predictions were missing; each counts as the worst there can be, and where a score "
            "has no worst value it is left out and the method is not marked best."
        )
    outlined = [case for one in judged if one.task == "segmentation" for case in one.cases]
    if outlined and all(case.truth for case in outlined):
        said.append("Nobody free of the tumour was judged: how often it is seen where none is, is not known.")
    return said


def _few(judged: Judged) -> str:
    """That a score rests on few patients: to outline those with the type, to classify also those without.

    Intervals of a score that compares the two are as wide as the smaller class makes them.
    """
    sides: dict[str, tuple[set[str], set[str]]] = {}
    for case in judged.cases:
        sides.setdefault(case.tumour, (set(), set()))[not case.truth].add(case.patient)
    outlined = judged.task == "segmentation"
    few = []
    for tumour, (having, free) in sides.items():
        if outlined and len(having) < MANY:
            few.append(f"{len(having)} with {tumour}")
        elif not outlined and (len(having | free) < MANY or 2 * min(len(having), len(free)) < MANY):
            few.append(f"{len(having)} with {tumour} and {len(free)} without")
    if not few:
        return ""
    done = "outlined" if outlined else "told apart"
    return (
        f"Few patients were {done}, {'; '.join(few)}: intervals are wide, and nothing is said of subgroups."
    )
