#!/usr/bin/env bash
# A virtual environment with MONAI Label for `pytest -m slow tests/monailabel`; 6 GB, some minutes.
#   bash tests/monailabel/set_up.sh FOLDER && MONAILABEL_VENV=FOLDER pytest -m slow tests/monailabel
set -euo pipefail
venv=${1:?name the folder to make}
python3 -m venv "$venv"
pip() { "$venv/bin/python" -m pip install --quiet --no-input "$@"; }
pip --upgrade pip setuptools wheel
# torchvision must be that of torch; sam2 builds against the torch that is there, its CUDA part left out
pip "${TORCH:-torch==2.14.1}" "${TORCHVISION:-torchvision==0.29.1}"
SAM2_BUILD_CUDA=0 pip --no-build-isolation sam2
pip monailabel==0.8.5
# MONAI Label 0.8.5 imports pydicom-seg 0.4.1, which imports a module that pydicom 3 has no more; what it takes
# besides must be of pydicom 2's time
pip "pydicom<3" "dicomweb-client[gcp]>=0.59.1,<0.60" "pynetdicom<3"
"$venv/bin/python" -c "import monailabel, monai, torch; print(monailabel.__version__, monai.__version__, torch.__version__)"
