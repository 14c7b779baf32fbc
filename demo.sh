#!/usr/bin/env bash
# ./demo.sh [FOLDER]: from a folder of photos to a trained patch SAE and its concepts, on the CPU. Without FOLDER it takes the
# photos of the Debian package tuxpaint-stamps-default. Results go to out/demo.
set -euo pipefail
cd "$(dirname "$0")"

tools/install_packages.sh cmake g++ ninja-build libdnnl-dev zlib1g-dev libstb-dev libturbojpeg0-dev libjpeg62-turbo-dev \
    rapidjson-dev libcli11-dev libfmt-dev

echo "== build"
cmake -S . -B build/demo -G Ninja -DCMAKE_BUILD_TYPE=Release -DPSAE_TESTS=OFF >/dev/null
cmake --build build/demo --target patchsae
patchsae=build/demo/patchsae

photos=${1:-build/photos/usr/share/tuxpaint/stamps}
if [[ ! -d $photos ]]; then
    echo "== photos"
    # Unpacked beside the build instead of installed: no root is needed, and nothing is left on the system.
    mkdir -p build/download
    if ! (cd build/download && apt-get download -q tuxpaint-stamps-default); then
        if [[ $(id -u) -eq 0 ]]; then apt-get update -qq; else sudo apt-get update -qq; fi
        (cd build/download && apt-get download -q tuxpaint-stamps-default)
    fi
    rm -rf build/photos.part
    dpkg -x build/download/tuxpaint-stamps-default_*.deb build/photos.part
    mv build/photos.part build/photos
fi

model=data/tiny-clip
out=out/demo
sae=$out/sae
rm -rf "$out"
mkdir -p "$out"

echo "== model"
$patchsae info "$model"

echo "== train"
$patchsae train --model "$model" --images "$photos" --out "$sae" --variant topk --k 32 --expansion 16 \
    --steps "${PSAE_DEMO_STEPS:-600}" --batch-tokens 2048 --lr 1e-3 --warmup-steps 50 --seed 1

echo "== latents"
$patchsae latents --model "$model" --sae "$sae" --images "$photos" --out "$out/latents"

echo "== masks"
# For a few photos, the three strongest latents of the patch in the middle, each drawn over the photo.
found=""
for name in chicken cat car; do
    photo=$(find "$photos" -name "$name*.png" | LC_ALL=C sort | head -n 1)
    [[ -n $photo ]] || continue
    masks=$out/masks/$(basename "$photo" .png)
    latents=$($patchsae mask --model "$model" --sae "$sae" --image "$photo" --patch 7,7 --top 3 --out "$masks" | cut -d " " -f 1)
    # shellcheck disable=SC2086
    $patchsae mask --model "$model" --sae "$sae" --image "$photo" --latent $latents --out "$masks"
    found="$found $masks/"
done

echo
$patchsae info "$sae"
tail -n 1 "$sae/metrics.jsonl"
echo "Open the pictures in$found (where in a photo its strongest latents fire), and $out/latents/latents.csv (every latent)."
