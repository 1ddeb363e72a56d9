"""The mean over types, or organs, of cases' scores, with its interval: for other scripts of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medmeta.evaluation import clustered

Case = tuple[str, str, int, float]
"""Type, patient, draw, value."""


def over_types(cases: Sequence[Case]) -> dict[str, Any]:
    """Each type counts once, however many its patients; patients and draws both vary."""
    values, kinds = np.array([c[3] for c in cases]), np.array([c[0] for c in cases])

    def mean(i: Any) -> float:
        return float(np.mean([values[i][kinds[i] == k].mean() for k in np.unique(kinds[i])]))

    bounds = (0.0, 1.0) if values.min() >= 0 else (-np.inf, np.inf)
    found = clustered([c[1] for c in cases], [c[2] for c in cases], mean, bounds=bounds).to_json()
    return {**found, "types": len(set(kinds)), "patients": len({c[1] for c in cases})}
