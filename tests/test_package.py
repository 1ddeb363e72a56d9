"""What an ordinary installation, not an editable one, would lack."""

from __future__ import annotations

import sys

import pytest

from tests.conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")


def test_every_file_of_the_package_is_installed() -> None:
    package = ROOT / "medmeta"
    said = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    data = {found for pattern in said["package-data"]["medmeta"] for found in package.glob(pattern)}
    files = {p for p in package.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert files
    assert files <= data, "not in [tool.setuptools.package-data]"


def test_every_folder_with_code_is_a_package() -> None:
    # setuptools' find skips folders without __init__.py
    for folder in {p.parent for p in (ROOT / "medmeta").rglob("*.py")}:
        assert (folder / "__init__.py").is_file(), folder
