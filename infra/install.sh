#!/usr/bin/env bash
# Creates a virtual environment with pinned packages and this project.
# usage: infra/install.sh VENV [PYTHON] [REQUIREMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${2:-python3}
requirements=${3:-requirements.txt}
torch=2.13.0

step() { echo "install: $1"; }
pip=("$venv/bin/python" -m pip --disable-pip-version-check)

if [ ! -x "$venv/bin/python" ]; then
    step "creating $venv"
    "$python" -m venv "$venv"
fi
if "${pip[@]}" show torch 2>/dev/null | grep -q "^Version: $torch"; then
    step "PyTorch $torch is there already"
elif [ "$(uname -s)" = Linux ] && ! nvidia-smi -L >/dev/null 2>&1; then
    # PyPI's Linux build installs several GB of CUDA packages, useless without a GPU. The CPU build
    # comes from wherever pip already looks, else from PyTorch's own index.
    step "PyTorch $torch, CPU build (about 200 MB)"
    "${pip[@]}" install "torch==$torch+cpu" 2>/dev/null ||
        "${pip[@]}" install "torch==$torch" --index-url https://download.pytorch.org/whl/cpu || {
        step "PyTorch's index of CPU builds cannot be reached. Installing PyPI's build instead, which"
        step "works the same on CPUs but downloads about 3 GB of CUDA packages and takes 6 GB of disk."
        "${pip[@]}" install "torch==$torch"
    }
else
    step "PyTorch $torch (about 3 GB)"
    "${pip[@]}" install "torch==$torch"
fi
step "the packages of $requirements"
"${pip[@]}" install --requirement "$requirements"
step "tokpipe"
"${pip[@]}" install --quiet --no-deps --editable .
