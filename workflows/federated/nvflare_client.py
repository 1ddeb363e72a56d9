"""A site's part of a federated training, for NVFlare's client API: MONAI's client on the site's own bundle.

Where the cohort and the bundle lie is for the site to say, in its environment: MEDMETA_COHORT and
MEDMETA_BUNDLE (``{site}`` stands for the site's name). The job names neither, and sends no configuration.
"""

from __future__ import annotations

import os
from pathlib import Path

import nvflare.client as flare
import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject


def place(variable: str, site: str) -> Path:
    """The folder that a site's environment names."""
    value = os.environ.get(variable)
    if not value:
        raise SystemExit(f"wanted {variable} in the environment of {site}, found none. Set it to a folder.")
    return Path(value.replace("{site}", site)).resolve()


def main() -> None:
    """Judge and train on what the server sends; send weights, a score and a count of steps."""
    flare.init()
    site = flare.get_site_name()
    bundle, cohort = place("MEDMETA_BUNDLE", site), place("MEDMETA_COHORT", site)
    told = {"bundle_root": str(bundle), "dataset_dir": str(cohort)}
    client = MonaiAlgo(str(bundle), send_weight_diff=False, train_kwargs={**told}, eval_kwargs={**told})
    torch.manual_seed(0)  # the first weights are the same at every site
    client.initialize(extra={ExtraItems.CLIENT_NAME: site})
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        given = {name: torch.as_tensor(weight) for name, weight in received.params.items()}
        start = ExchangeObject(weights=given or client.get_weights().weights)
        score = float(client.evaluate(start).metrics["score"])
        client.train(start)
        made = client.get_weights()
        weights = {name: weight.numpy() for name, weight in made.weights.items()}
        steps = int(made.statistics["num_executed_iterations"])
        about = {"NUM_STEPS_CURRENT_ROUND": steps}
        flare.send(flare.FLModel(params=weights, metrics={"score": score}, meta=about))
    client.finalize()


if __name__ == "__main__":
    main()
