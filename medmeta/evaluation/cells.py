"""What each patient counts for a score after learning from each drawn support: what intervals are made of."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Cells = NDArray[np.float64]
"""``(draw, patient)``: what each patient counts for a score, after learning from each draw; nan for none."""


def pseudo_values(
    patients: Sequence[Hashable],
    draws: Sequence[Hashable],
    statistic: Callable[[NDArray[np.int64]], float | None],
    *,
    classes: Sequence[Hashable | None] | None = None,
    least: Mapping[Hashable, int] | None = None,
) -> Cells:
    """What each patient counts for any statistic of a draw, so that their mean is that of the draws.

    Jackknife pseudo-values (Tukey 1958) within each draw, centred: for a mean they are the patients' own.
    Scores of different draws are not on one scale, so the statistic is of one draw at a time, and each
    draw counts once, however many patients or groups it has: all cells are moved by what that takes.

    Where it compares classes (AUROC), it is no surer than the class with fewest patients lets it be: two
    patients with the tumour say little, however many are free of it. So each patient of that class is left
    out together with a share of the others (the delete-a-group jackknife, Kott 2001), and such a group counts
    as one patient, in the column of one of the last class.

    Args:
        patients, draws: of each case.
        statistic: of the numbers of some cases of one draw; None where undefined.
        classes: of each case's patient; None for a case that says nothing. Without, all are of one class.
        least: patients of a class that a group has at least, where there are twice as many; 1 where it is
            not named.

    Returns:
        ``(draw, patient)``, patients as they first come (keys are salted, and no other folder would have
        the groups that the order of keys makes here), nan for a patient who says nothing or is counted with
        another, and for a draw where the statistic is undefined. A draw in which a class is in one group
        only, or in which the statistic would be undefined without some group, tells of no spread within and
        counts as one patient.

    Example:
        >>> values = np.array([1.0, 2.0, 6.0])
        >>> pseudo_values("abc", "xxx", lambda i: float(values[i].mean()))
        array([[1., 2., 6.]])
        >>> apart = lambda i: float(values[i[i > 0]].mean() - values[i[i == 0]].mean()) if 0 in i else None
        >>> pseudo_values("abc", "xxx", apart, classes=[0, 1, 1])  # one patient of a class tells no spread
        array([[nan,  3., nan]])
    """
    names, drawn = _order(patients, draws)
    column, row = {n: i for i, n in enumerate(names)}, {d: i for i, d in enumerate(drawn)}
    said = [0] * len(patients) if classes is None else classes
    kind_of = {column[p]: k for p, k in zip(patients, said, strict=True) if k is not None}
    home = _homes(kind_of, least or {})
    places = np.array([home.get(column[p], -1) for p in patients])
    kinds = [kind_of.get(column[p]) for p in patients]
    rows = np.array([row[d] for d in draws])
    cells = np.full((len(drawn), len(names)), np.nan)
    for r in range(len(drawn)):
        cases = np.flatnonzero((rows == r) & (places >= 0))
        for place, value in _of_draw(cases, places, kinds, statistic).items():
            cells[r, place] = value
    known = np.isfinite(cells)
    if known.any():
        by_draw = [row[there].mean() for row, there in zip(cells, known, strict=True) if there.any()]
        cells += np.mean(by_draw) - cells[known].mean()
    return cells


def _order(patients: Sequence[Hashable], draws: Sequence[Hashable]) -> tuple[list[Hashable], list[Hashable]]:
    """Columns and rows of cells."""
    return list(dict.fromkeys(patients)), sorted(set(draws))  # type: ignore[type-var]


def _of_draw(
    cases: NDArray[np.int64],
    places: NDArray[np.int64],
    kinds: Sequence[Hashable],
    statistic: Callable[[NDArray[np.int64]], float | None],
) -> dict[int, float]:
    """What each group counts, by its column, of the cases of one draw."""
    whole = statistic(cases) if len(cases) else None
    if whole is None or not np.isfinite(whole):
        return {}
    groups = np.unique(places[cases]).tolist()
    fewest = _fewest(places[cases].tolist(), [kinds[i] for i in cases.tolist()])
    if len(fewest) > 1:
        left_out = np.array([statistic(cases[places[cases] != g]) for g in groups], dtype=float)
        if np.isfinite(left_out).all():
            moved = (len(groups) - 1) * (left_out.mean() - left_out)
            return dict(zip(groups, (whole + moved).tolist(), strict=True))
    return {fewest[0]: whole}


def _homes(kinds: Mapping[int, Hashable], least: Mapping[Hashable, int]) -> dict[int, int]:
    """The column in which each patient is counted, of the class of each by column."""
    names = sorted(set(kinds.values()))  # type: ignore[type-var]
    members = [[c for c in sorted(kinds) if kinds[c] == name] for name in names]
    # a patient of two classes is a member of one, so a class may have fewer members than patients
    size = [max(1, min(least.get(n, 1), len(m) // 2)) for n, m in zip(names, members, strict=True)]
    groups = min((len(m) // n for n, m in zip(size, members, strict=True)), default=0)
    return {c: members[-1][i % groups] for some in members for i, c in enumerate(some)}


def _fewest(places: Sequence[int], kinds: Sequence[Hashable]) -> list[int]:
    """The columns in which that class is counted that is in the fewest."""
    by_class: dict[Hashable, set[int]] = {}
    for place, kind in zip(places, kinds, strict=True):
        by_class.setdefault(kind, set()).add(place)
    return min((sorted(some) for some in by_class.values()), key=len)


def cells_of(
    patients: Sequence[Hashable], draws: Sequence[Hashable], values: Sequence[float | None]
) -> Cells:
    """Values of cases by draw and patient, as these first come; the mean where a patient has several.

    Example:
        >>> cells_of(["a", "b", "a"], [0, 0, 1], [0.5, 0.7, None])
        array([[0.5, 0.7],
               [nan, nan]])
    """
    names, drawn = _order(patients, draws)
    where = {n: i for i, n in enumerate(names)}, {d: i for i, d in enumerate(drawn)}
    total, count = (np.zeros((len(drawn), len(names))) for _ in range(2))
    for patient, draw, value in zip(patients, draws, values, strict=True):
        if value is not None and np.isfinite(value):
            total[where[1][draw], where[0][patient]] += value
            count[where[1][draw], where[0][patient]] += 1
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
