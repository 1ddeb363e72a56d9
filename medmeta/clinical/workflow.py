"""What the workflows in source form call: a run that is over is a run in which nothing failed."""

from __future__ import annotations

from typing import Any

from medmeta.clinical.bundle import BundleError
from medmeta.clinical.predict import predict


def predict_all(bundle: Any, inputs: Any, out: Any, **options: Any) -> list[dict[str, Any]]:
    """:func:`medmeta.clinical.predict`, and an error at the end where a case failed.

    ``python -m monai.bundle run`` exits 0 unless something is raised; the other cases are there all the same.

    Raises:
        BundleError: where one failed, after all were tried, and as ``predict``.

    Example:
        >>> predict_all("no such folder", ["scan.nii.gz"], "out")
        Traceback (most recent call last):
            ...
        medmeta.clinical.bundle.BundleError: wanted a bundle folder, found none. Give the folder of a bundle.
    """
    results = predict(bundle, inputs, out, **options)
    failed = [r for r in results if not r["ok"]]
    if failed:
        raise BundleError(
            f"results of all {len(results)} cases",
            found=f"{len(failed)} that failed, {failed[0]['case']} first: {failed[0]['message']}",
            cure="Mend or leave out those; the others are written.",
        )
    return results
