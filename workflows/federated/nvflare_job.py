"""The server's part of a federated training by NVFlare: averages of the sites' weights, round by round.

python nvflare_job.py export JOBS                      a job folder to submit
python nvflare_job.py simulate WORKSPACE --sites north south
python nvflare_job.py finish FL_global_model.pt --out run     the averaged weights as a run for medmeta adapt
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def job(rounds: int, sites: int) -> Any:
    """Federated averaging (McMahan et al. 2017), weighted by steps taken."""
    from nvflare.app_common.workflows.fedavg import FedAvg
    from nvflare.fuel.utils.constants import FrameworkType
    from nvflare.job_config.api import FedJob
    from nvflare.job_config.script_runner import ScriptRunner

    made = FedJob(name="medmeta", min_clients=sites)
    made.to_server(FedAvg(num_clients=sites, num_rounds=rounds))
    made.to_clients(ScriptRunner(script=str(HERE / "nvflare_client.py"), framework=FrameworkType.NUMPY))
    return made


def finish(file: Path, out: Path) -> None:
    """Make the averaged weights a run."""
    import torch
    from nvflare.app_common.decomposers import common_decomposers, numpy_decomposers
    from nvflare.fuel.utils import fobs

    from medmeta.training.federated import finish as write_run

    common_decomposers.register()
    numpy_decomposers.register()
    weights = {name: torch.as_tensor(weight) for name, weight in fobs.loadf(str(file)).params.items()}
    write_run(HERE, weights, out)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("export", "simulate"):
        one = commands.add_parser(name)
        one.add_argument("folder", type=Path)
        one.add_argument("--rounds", type=int, default=2 if name == "simulate" else 20)
        one.add_argument("--sites", nargs="+", default=["north", "south"])
    last = commands.add_parser("finish")
    last.add_argument("file", type=Path)
    last.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    if asked.command == "finish":
        finish(asked.file, asked.out)
    elif asked.command == "export":
        job(asked.rounds, len(asked.sites)).export_job(str(asked.folder))
    else:
        job(asked.rounds, len(asked.sites)).simulator_run(str(asked.folder), clients=asked.sites, threads=1)


if __name__ == "__main__":
    main()
