#!/usr/bin/env bash
# Installs what is missing, builds everything and runs all tests. Works as root or with sudo, and any number of times.
set -euo pipefail
cd "$(dirname "$0")"
packages=(g++ cmake ninja-build libdnnl-dev zlib1g-dev libjpeg62-turbo-dev rapidjson-dev catch2 libcli11-dev libfmt-dev)
missing=()
for p in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q "install ok installed" || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
    sudo=""
    [ "$(id -u)" -eq 0 ] || sudo="sudo"
    $sudo apt-get update -qq
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi
cmake --preset release
cmake --build --preset release
ctest --preset release
