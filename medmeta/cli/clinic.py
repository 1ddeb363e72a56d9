"""Commands for the hospital: adapt, export, predict, verify."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from medmeta.cli.terminal import Bar, Json, Out, Seed, log, plain


def adapt(
    run: Annotated[Path, typer.Argument(help="What 'medmeta train' wrote.")],
    support: Annotated[Path, typer.Argument(help="A cohort of k labelled patients.")],
    out: Out,
    tumor: Annotated[str | None, typer.Option(help="The type, where the support has several.")] = None,
    safeguard: Annotated[
        bool, typer.Option("--safeguard", help="Fine-tune while support patients left out gain; slower.")
    ] = False,
    rate: Annotated[
        float | None, typer.Option(help="Of gradient steps, where 'medmeta evaluate' chose another.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="Gradient steps; as --rate.")] = None,
    description: Annotated[
        str | None,
        typer.Option("--description", help="Regex: the SeriesDescription that predict shall look for."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Turn k labelled patients into a MONAI bundle for their tumour type."""
    from medmeta.clinical import adapt as run_adapt

    options: dict[str, Any] = {"tumour": tumor, "seed": seed, "safeguard": safeguard}
    options.update(rate=rate, steps=steps, description=description)
    bundle = run_adapt(run, support, out, track=Bar(), **options)
    log.print(f"Bundle: {plain(str(bundle))}", soft_wrap=True)


def export(
    bundle: Annotated[Path, typer.Argument(help="What 'medmeta adapt' wrote.")],
    out: Out,
    onnx: Annotated[bool, typer.Option("--onnx", help="Add models/model.onnx.")] = False,
    results: Annotated[
        Path | None, typer.Option(help="results.json of 'medmeta evaluate', for the card.")
    ] = None,
    authors: Annotated[str | None, typer.Option(help="Who made it.")] = None,
    copyright: Annotated[str | None, typer.Option(help="Who holds the rights.")] = None,
    data_licence: Annotated[
        Path | None, typer.Option(help="Text: the licence of the data learnt from.")
    ] = None,
) -> None:
    """Make an adapted bundle ready for others: verified, with ONNX, held-out results, authors and licence."""
    from medmeta.clinical import hand_on

    options: dict[str, Any] = {"onnx": onnx, "results": results, "authors": authors, "copyright": copyright}
    made = hand_on(bundle, out, data_licence=data_licence, **options)
    log.print(f"Bundle: {plain(str(made))}", soft_wrap=True)


def predict(
    bundle: Annotated[Path, typer.Argument(help="What 'medmeta adapt' wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the cases; one that is there is refused.")],
    scan: Annotated[
        list[Path] | None,
        typer.Argument(help="NIfTI files, folders or zips of DICOM studies; channels as 'T1;T2'."),
    ] = None,
    mask: Annotated[
        list[Path] | None, typer.Option(help="Outlines of the lesions to classify, one a scan.")
    ] = None,
    formats: Annotated[str, typer.Option(help="Of a segmentation: nifti,seg,sr,json,png,html.")] = "nifti",
    series: Annotated[
        str | None, typer.Option("--series", help="This series, by UID or key of 'medmeta inspect'.")
    ] = None,
    modality: Annotated[
        str | None, typer.Option("--modality", help="A series of it instead of the bundle's rule.")
    ] = None,
    description: Annotated[
        str | None, typer.Option("--description", help="Found in SeriesDescription (regex), likewise.")
    ] = None,
    dicomweb: Annotated[str | None, typer.Option(help="Address of an archive to take studies from.")] = None,
    study: Annotated[list[str] | None, typer.Option(help="StudyInstanceUID in the archive.")] = None,
    store: Annotated[bool, typer.Option("--store", help="Store SEG and SR in the archive.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer of the archive.")] = 60.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Pass over cases of this scan and bundle that are there.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Outline or classify scans with a bundle: DIR/<case>/<case>_seg.nii.gz, or a class as JSON.

    Studies of an archive: --dicomweb URL --study UID. Its credentials come from MEDMETA_DICOMWEB_USER and
    MEDMETA_DICOMWEB_PASSWORD, from MEDMETA_DICOMWEB_TOKEN, or from a netrc file.
    """
    from medmeta.clinical import predict as run_predict
    from medmeta.clinical import studies
    from medmeta.clinical.stopping import Terminated, terminable
    from medmeta.volumes.dicom_series import Choice

    try:
        with terminable():
            scans = [*(scan or ()), *studies(dicomweb, study or (), store=store, timeout=timeout)]
            done = run_predict(
                bundle,
                scans,
                out,
                masks=mask,
                formats=[word.strip() for word in formats.split(",")],
                series=Choice(series, modality, description),
                resume=resume,
                tell=lambda one: _tell(one, as_json),
                track=Bar(),
            )
    except Terminated:
        log.print("Stopped; go on with --resume.")
        raise typer.Exit(143) from None
    raise typer.Exit(int(not all(one["ok"] for one in done)))


def _tell(one: dict[str, Any], as_json: bool) -> None:
    """A case that is done: a line of JSON on stdout, what people should know on stderr."""
    if as_json:
        typer.echo(json.dumps(one))
        sys.stdout.flush()
    case = plain(one["case"])
    if "series" in one:
        log.print(f"{case}: {plain(one['series']['said'])}", soft_wrap=True, highlight=False)
    if one.get("abstain"):
        how = f"distance {one['distance']:.3g}, where {one['threshold']:.3g} is the most"
        log.print(f"{case}: unlike the support ({how}); do not rely on its answer", soft_wrap=True)
    if "withheld_ml" in one:
        said = f"only {one['withheld_ml']:.3g} mL outlined in all, too little for this bundle: taken back"
        log.print(f"{case}: {said}", soft_wrap=True)
    if not one["ok"]:
        log.print(f"[red]{case}[/]: {plain(one['message'])}", soft_wrap=True, highlight=False)


def verify(bundle: Annotated[Path, typer.Argument(help="A MONAI bundle folder.")]) -> None:
    """Check a bundle before anything of it is run: manifest, schema, finite weights, no code of its own."""
    from medmeta.clinical import verify as check

    problems = check(bundle)
    for problem in problems:
        typer.echo(problem)
    raise typer.Exit(int(bool(problems)))
