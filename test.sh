#!/usr/bin/env bash
# ./test.sh [PRESET]: installs what is needed, builds, runs all tests. PRESET is release (default), debug, sanitize,
# clang or valgrind.
set -euo pipefail
cd "$(dirname "$0")"

preset=${1:-release}
packages=(cmake g++ ninja-build libdnnl-dev zlib1g-dev libturbojpeg0-dev libjpeg62-turbo-dev rapidjson-dev libutf8proc-dev
          catch2 libbenchmark-dev libcli11-dev libfmt-dev)
case $preset in
    release | debug | sanitize) ;;
    clang) packages+=(clang libomp-dev) ;;
    valgrind) packages+=(valgrind) ;;
    *) echo "test.sh: no preset $preset: release, debug, sanitize, clang or valgrind" >&2; exit 2 ;;
esac
tools/install_packages.sh "${packages[@]}"

# Where there is CUDA: for this machine's GPU, or, only to see that all of it compiles and links, for one kind.
gpu=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d . || true)
[[ $gpu =~ ^[0-9]+$ ]] && ((gpu >= 80)) || gpu=90
cmake --preset "$preset" --no-warn-unused-cli -DCMAKE_CUDA_ARCHITECTURES="$gpu-real"
cmake --build --preset "$preset"

# Two tests run at a time, each with a thread per core: waiting threads must not spin in the other's way.
export OMP_WAIT_POLICY=passive
ctest --preset "$preset" -j2
