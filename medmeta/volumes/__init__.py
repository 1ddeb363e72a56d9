"""From files to volumes in patient space: cohorts, plans, the prepared store, the way back."""

from __future__ import annotations

from medmeta.volumes.cohort import Cohort, open_cohort, patient_key
from medmeta.volumes.errors import VolumeError
from medmeta.volumes.layouts import CohortError
from medmeta.volumes.leaks import Leak, LeakReport, find_leaks
from medmeta.volumes.loading import load, load_mask
from medmeta.volumes.plan import Plan, make_plan
from medmeta.volumes.prepared import Prepared, prepare
from medmeta.volumes.record import Volume
from medmeta.volumes.restore import restore
from medmeta.volumes.split import split_patients
from medmeta.volumes.store import Store, StoreError

__all__ = [
    "Cohort",
    "CohortError",
    "Leak",
    "LeakReport",
    "Plan",
    "Prepared",
    "Store",
    "StoreError",
    "Volume",
    "VolumeError",
    "find_leaks",
    "load",
    "load_mask",
    "make_plan",
    "open_cohort",
    "patient_key",
    "prepare",
    "restore",
    "split_patients",
]
