"""A hospital's Python, which has MONAI and no medmeta: `python without_medmeta.py logits FOLDER`, or the
arguments of `python -m monai.bundle`."""

from __future__ import annotations

import json
import runpy
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any


class Absent(MetaPathFinder):
    """Says that there is no medmeta."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name.split(".")[0] == "medmeta":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def logits(folder: Path) -> None:
    """Build each bundle's network as MONAI does, write its logits of one image, and print what came of it."""
    import torch
    from monai.bundle import ConfigParser
    from safetensors.torch import load_file, save_file

    image = load_file(folder / "image.safetensors")["image"]
    said = {}
    for bundle in sorted(p for p in folder.iterdir() if p.is_dir()):
        try:
            parser = ConfigParser()
            parser.read_config(bundle / "configs" / "inference.json")
            network = parser.get_parsed_content("network_def")
            network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
            with torch.no_grad():
                save_file({"logits": network.eval()(image)}, bundle / "logits.safetensors")
            said[bundle.name] = "ok"
        except Exception as error:  # noqa: BLE001 - whatever it is, the test reads it
            said[bundle.name] = f"{error} {error.__cause__}"
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    sys.meta_path.insert(0, Absent())
    if sys.argv[1] == "logits":
        logits(Path(sys.argv[2]))
    else:
        runpy.run_module("monai.bundle", run_name="__main__")
    assert "medmeta" not in sys.modules
