#!/usr/bin/env bash
# Makes a virtual environment with the pinned packages and this project in it.
# usage: infra/install.sh VENV [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${2:-python3}
torch=2.13.0

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)

if [ "$(uname -s)" = Linux ] && ! nvidia-smi -L >/dev/null 2>&1; then
    # The default Linux build brings several GB of CUDA packages, useless without a GPU. The CPU
    # build comes from wherever pip already looks, else from PyTorch's own index.
    "${pip[@]}" "torch==$torch+cpu" 2>/dev/null ||
        "${pip[@]}" "torch==$torch" --index-url https://download.pytorch.org/whl/cpu
else
    "${pip[@]}" "torch==$torch"
fi
"${pip[@]}" --requirement requirements.txt
"${pip[@]}" --no-deps --editable .
