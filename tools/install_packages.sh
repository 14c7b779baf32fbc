#!/usr/bin/env bash
# install_packages.sh PACKAGE...: installs those Debian packages that are missing; needs root or sudo only if any is.
set -euo pipefail

missing=()
for package in "$@"; do
    status=$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null || true)
    [[ $status == ii* ]] || missing+=("$package")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

as_root=()
if [[ $(id -u) -ne 0 ]]; then
    command -v sudo >/dev/null || { echo "install_packages.sh: not root and no sudo; please install: ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
fi
command -v apt-get >/dev/null || { echo "install_packages.sh: no apt-get; please install: ${missing[*]}" >&2; exit 1; }
echo "installing ${missing[*]}"
# A list of packages that cannot be refreshed may still be good enough.
"${as_root[@]}" apt-get update -qq || true
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
