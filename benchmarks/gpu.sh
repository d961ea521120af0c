#!/usr/bin/env bash
# Everything that is asked of a GPU, in one call: benchmarks/gpu.py, after installing what it needs, without a network.
#
#   benchmarks/gpu.sh [--wheels FOLDER] --out FOLDER [--data FOLDER] [--minutes 9] [--rehearse]
#
# FOLDER of --wheels holds wheels of nnU-Net, of what the machine lacks beside torch, and of pytest; a *.tar.xz there is
# unpacked beside them. A repeated call goes on where the last one ended. --rehearse walks through all of it on a CPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ "${1:-}" == --wheels ]]; then
  wheels=${2:?gpu.sh: --wheels needs a folder}
  shift 2
  site=${TMPDIR:-/tmp}/nnunet_mutual_gpu
  if [[ ! -e "$site/whole" ]]; then
    rm -rf "$site"
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
    for archive in "$wheels"/*.tar.xz; do
      [[ ! -e "$archive" ]] || python3 -m tarfile -e "$archive" "$site"
    done
    python3 -m pip install -q --no-index --no-deps --no-build-isolation --no-cache-dir --target "$site" .
    touch "$site/whole"
  fi
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PATH="$site/bin:$PATH"
fi
if ! python3 -c "import nnunet_mutual, nnunetv2, torch"; then
  echo "gpu.sh: $(command -v python3) lacks what is named above; install it, or give --wheels FOLDER" >&2
  exit 2
fi
exec python3 benchmarks/gpu.py ${wheels:+--wheels "$wheels"} "$@"
