#!/usr/bin/env bash
# Wheels for a GPU machine without network: tools/gpu_wheels.sh [--python-version 3.12] [NAME ...]
# The names are those that an image with torch, Lightning, TensorBoard, matplotlib and pytest usually lacks, with the versions of
# constraints.txt; other names may be given instead. They go to .wheels/, which git ignores. On the machine:
#   python -m pip install --no-index --no-deps --target /tmp/site .wheels/*.whl && export PYTHONPATH=/tmp/site
set -euo pipefail
cd "$(dirname "$0")/.."
version=3.12
if [[ "${1:-}" == --python-version ]]; then
  version=$2
  shift 2
fi
names=("$@")
[[ ${#names[@]} -gt 0 ]] || names=(jsonargparse typeshed_client docstring_parser plotly)

pins=()
for name in "${names[@]}"; do
  pattern="^${name//[-_.]/[-_.]}=="
  pin=$(grep -iE "$pattern" constraints.txt) || { echo "gpu_wheels.sh: $name is not in constraints.txt" >&2; exit 2; }
  pins+=("$pin")
done
rm -rf .wheels
mkdir .wheels
platforms=()
for glibc in 2_28 2_27 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
python3 -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$version" \
  "${platforms[@]}" --dest .wheels "${pins[@]}"
ls -l .wheels
