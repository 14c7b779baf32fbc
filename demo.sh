#!/usr/bin/env bash
# ./demo.sh [FOLDER]: from a folder of photos to a trained patch SAE and its concepts, on the CPU. Without FOLDER it takes the
# photos of the Debian package tuxpaint-stamps-default. Results go to out/demo.
# A few minutes on two cores; PSAE_DEMO_STEPS sets the number of training steps.
set -euo pipefail
cd "$(dirname "$0")"

tools/install_packages.sh cmake g++ ninja-build libdnnl-dev zlib1g-dev libturbojpeg0-dev libjpeg62-turbo-dev \
    rapidjson-dev libutf8proc-dev libcli11-dev libfmt-dev

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
$patchsae train --model "$model" --images "$photos" --out "$sae" --variant topk --k 16 --expansion 8 \
    --steps "${PSAE_DEMO_STEPS:-600}" --batch-tokens 2048 --lr 1e-3 --warmup-steps 50 --seed 1 | tee "$out/train.txt"

echo "== evaluation"
# Labels are the first-level folders. Of the stamps the model's classes are known: those photos and templates are taken.
labelled=$photos
templates=()
if [[ $# -eq 0 ]]; then
    labelled=$out/classes.csv
    awk -F '"' -v root="$PWD/$photos" 'BEGIN { print "path,label,split" }
        $2 == "name" { class = $4 }
        $2 == "train" || $2 == "test" { split_name = $2 }
        $2 ~ /\.(png|jpg)$/ { print root "/" $2 "," class "," split_name }' "$model/classes.json" >"$labelled"
    sed -n '/"templates"/,/]/s/^  "\(.*\)",*$/\1/p' "$model/classes.json" >"$out/templates.txt"
    templates=(--templates "$out/templates.txt")
fi
$patchsae evaluate --model "$model" --sae "$sae" --images "$labelled" "${templates[@]}" --out "$sae/evaluation"

echo "== latents, scatter plots, reference-image grids"
# Labels are the first-level folders: in the stamps the package's own topics (animals, food, town, ...).
$patchsae latents --model "$model" --sae "$sae" --images "$photos" --out "$sae/latents" | tee "$out/latents.txt"

if [[ $# -eq 0 ]]; then
    echo "== latents of the classes"
    $patchsae classes --model "$model" --sae "$sae" --images "$labelled" --split train --out "$sae/classes"

    echo "== interventions: latents chosen on the training photos, accuracy on the others"
    $patchsae intervene --model "$model" --sae "$sae" --images "$labelled" --split test \
        --class-latents "$sae/classes/class_latents.npz" "${templates[@]}" --out "$sae/interventions"

    echo "== which latents speak for a class and which against it, in a test photo of each of six classes"
    awk -F , 'NR == 1 || ($3 == "test" && !seen[$2]++ && n++ < 6)' "$labelled" >"$out/six.csv"
    cut -d , -f 2 "$labelled" | sed 1d | LC_ALL=C sort -u >"$out/class_names.txt"
    $patchsae attribute --model "$model" --sae "$sae" --images "$out/six.csv" --classes "$out/class_names.txt" \
        "${templates[@]}" --method integrated --contrast others --out "$sae/attributions"

    echo "== the model beside its adapted form: MaPLe's prompts, learnt for the photos' topics on the training photos"
    awk -F , -v root="$PWD/$photos/" 'NR == 1 { print; next }
        { topic = substr($1, length(root) + 1); sub(/\/.*/, "", topic); print $1 "," topic "," $3 }' "$labelled" >"$out/topics.csv"
    echo "a photo of a {}." >"$out/template.txt"
    $patchsae compare --model "$model" --adapter data/tiny-clip-maple/model.pth.tar-12 --sae "$sae" --images "$out/topics.csv" \
        --templates "$out/template.txt" --train-split train --split test --order phi --k 5 20 100 --out "$sae/comparison"
fi

echo "== masks"
# For the latents that `latents` named: where they fire in the photo that activates each most.
for latent in $(sed -n 's/^latent \([0-9]*\):.*/\1/p' "$out/latents.txt"); do
    photo=$(awk -F '"' -v row="^$latent," '$1 ~ row { print $2 }' "$sae/latents/latents.csv")
    $patchsae mask --model "$model" --sae "$sae" --image "$photo" --latent "$latent" --out "$out/masks"
done
photo=$(find "$photos" -iname "*.png" -o -iname "*.jpg" -o -iname "*.jpeg" | LC_ALL=C sort | sed -n 1p)
echo "the strongest latents of the middle patch of $photo:"
$patchsae mask --model "$model" --sae "$sae" --image "$photo" --patch 7,7 --top 3 --out "$out/masks"

echo "== report"
$patchsae report --sae "$sae" --out "$out/report.html"

echo
echo "Found:"
cut -d : -f -2 "$out/train.txt"
cat "$out/latents.txt"
echo "Open:"
echo "  $out/report.html           everything on one page"
echo "  $sae/latents/grids/    the top images of the most interesting latents, and where in them they fire"
echo "  $out/masks/                where the latents above fire in their strongest photo"
