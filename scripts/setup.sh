#!/usr/bin/env bash
# Make .venv with everything that fastuiat needs, system packages included where we may.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-torch==2.14.1 torchvision==0.29.1} # a pair: each torchvision fits one torch

# Chromium opens the pages in the tests.
wanted=(g++ pkg-config libopencv-dev libturbojpeg0-dev chromium chromium-driver)
"$PYTHON" -c 'import ensurepip' 2>/dev/null || wanted+=(python3-venv)
"$PYTHON" - <<'PY' || wanted+=(python3-dev)
import pathlib, sys, sysconfig
sys.exit(not (pathlib.Path(sysconfig.get_paths()["include"]) / "Python.h").exists())
PY

missing=()
if command -v dpkg-query >/dev/null; then
    for package in "${wanted[@]}"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok' || missing+=("$package")
    done
fi
if ((${#missing[@]})); then
    if [ "$(id -u)" = 0 ]; then
        echo "setup: installing ${missing[*]}"
        export DEBIAN_FRONTEND=noninteractive
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; } ||
            echo "setup: apt-get failed; going on without ${missing[*]}"
    else
        echo "setup: for FFCV, compilation and tests: sudo apt-get install -y --no-install-recommends ${missing[*]}"
        echo "setup: going on without them"
    fi
fi

[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
echo "setup: installing torch (large; a minute or more)"
# shellcheck disable=SC2086
pip install -q $TORCH 2>&1 | grep -v '^WARNING: Location' || true
.venv/bin/python -c 'import torch, torchvision'
pip install -q wheel setuptools 2>&1 | grep -v '^WARNING: Location' || true
echo "setup: installing fastuiat"
pip install -q -e '.[dev]' 2>&1 | grep -v '^WARNING: Location' || true
.venv/bin/python -c 'import fastuiat'
# Tests load exports into its network classes, which need none of the packages that it asks for.
pip install -q --no-deps robustbench 2>&1 | grep -v '^WARNING: Location' || true

if ! .venv/bin/python -c 'import ffcv' 2>/dev/null; then
    echo "setup: building FFCV"
    # Its own metadata asks for packages it no longer needs, hence --no-deps and the list.
    if ! { pip install -q numba opencv-python-headless pandas tqdm psutil terminaltables fastargs &&
        pip install -q --no-build-isolation --no-deps ffcv; } >.venv/ffcv.log 2>&1; then
        echo "setup: FFCV could not be built (.venv/ffcv.log); fastuiat uses its resident loader"
    fi
fi
touch .venv/ready
echo "setup: done"
