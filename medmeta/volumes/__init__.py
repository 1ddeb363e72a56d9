"""From files to volumes in patient space: cohorts, plans, the prepared store, the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medmeta.volumes.cohort import Cohort, open_cohort, patient_key
from medmeta.volumes.errors import VolumeError
from medmeta.volumes.inventory import inspect
from medmeta.volumes.layouts import CohortError
from medmeta.volumes.leaks import Leak, LeakReport, find_leaks
from medmeta.volumes.loading import load
from medmeta.volumes.mask_loading import load_mask
from medmeta.volumes.plan import Plan, make_plan
from medmeta.volumes.prepared import Prepared, prepare
from medmeta.volumes.record import Volume
from medmeta.volumes.restore import restore
from medmeta.volumes.split import hold_out, split_patients
from medmeta.volumes.store import Store, StoreError

if TYPE_CHECKING:
    from medmeta.volumes.monai_reader import LoadVolumed, MedmetaReader

__all__ = [
    "Cohort",
    "CohortError",
    "Leak",
    "LeakReport",
    "LoadVolumed",
    "MedmetaReader",
    "Plan",
    "Prepared",
    "Store",
    "StoreError",
    "Volume",
    "VolumeError",
    "find_leaks",
    "hold_out",
    "inspect",
    "load",
    "load_mask",
    "make_plan",
    "open_cohort",
    "patient_key",
    "prepare",
    "restore",
    "split_patients",
]


def __getattr__(name: str) -> Any:
    if name in ("LoadVolumed", "MedmetaReader"):  # MONAI takes seconds to import
        from medmeta.volumes import monai_reader

        return getattr(monai_reader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
