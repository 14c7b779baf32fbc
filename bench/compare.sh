#!/usr/bin/env bash
# Ours beside PyTorch, ONNX Runtime, OpenVINO and Pillow, run in turns, since a shared machine drifts by 20%.
#   bench/compare.sh [rounds, default 3] [sae_step|topk|vit|preprocess|analysis ...]
# topk: what sae_step compares at L0 64 by TopK, for more rounds than the dense steps allow.
# BUILD: the folder with our programs; PEERS_VENV: a Python environment with bench/peers/requirements.txt,
# made when absent (needs python3-venv and about 6 GB). SAELens takes part where it is installed in it.
# The default shape needs 8 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-3}
shift || true
programs=("$@")
[ ${#programs[@]} -gt 0 ] || programs=(preprocess vit sae_step)
venv=${PEERS_VENV:-build/peers-venv}
out=out/compare
images=build/peers-images
export PYTHONDONTWRITEBYTECODE=1 PSAE_BENCH_IMAGES=$PWD/$images

if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet -r bench/peers/requirements.txt
fi
case " ${programs[*]} " in
*" preprocess "*)
    [ -e "$images/023.jpg" ] && [ -e "$images/005.png" ] || "$venv/bin/python" bench/peers/preprocess.py "$images" --make
    ;;
esac

# The path of our program, or nothing.
find_ours() {
    local folder
    for folder in ${BUILD:+"$BUILD" "$BUILD/bench"} build/release/bench build/bench; do
        for name in "$1" "bench_$1"; do
            if [ -f "$folder/$name" ] && [ -x "$folder/$name" ]; then echo "$folder/$name"; return; fi
        done
    done
}

# ours|peer, the record's name, the command: keeps the record and the log; a failure does not stop the rest.
record() {
    local side=$1 name=$2
    shift 2
    echo "round $round: $side $name" >&2
    "$@" >"$out/$round.$side.$name.json" 2>"$out/$round.$side.$name.log" || echo "  failed, see $out/$round.$side.$name.log" >&2
}

peer() { record peer "$1" "$venv/bin/python" "bench/peers/${1%%.*}.py" "${@:2}"; }

ours() {
    local path
    path=$(find_ours "${1/#topk/sae_step}")
    if [ -z "$path" ]; then
        echo "round $round: no program for $1; build with -DPSAE_BENCH=ON (BUILD names the folder)" >&2
    elif [ "$1" = topk ]; then
        record ours sae_step.topk_64 "$path" --benchmark_format=json '--benchmark_filter=^topk_step/.*/l0:64/'
    elif [ "$1" = sae_step ]; then # a process each, so that none has the memory of another
        record ours "$1.dense" "$path" --benchmark_format=json '--benchmark_filter=^relu_step/by_density/.*/l0:0/'
        record ours "$1.relu_64" "$path" --benchmark_format=json '--benchmark_filter=relu_step/by_density/.*/l0:64/'
        ours topk
    else
        record ours "$1" "$path" --benchmark_format=json
    fi
}

topk_peers() {
    peer sae_step.topk --kind topk --k 64 --repeats 3
    if "$venv/bin/python" -c 'import sae_lens' 2>/dev/null; then peer saelens; fi
}

mkdir -p "$out"
rm -f "$out"/*.json "$out"/*.log
for round in $(seq "$rounds"); do
    for program in "${programs[@]}"; do
        ours "$program"
        case $program in
        sae_step)
            peer sae_step.eager --kind eager
            peer sae_step.careful --kind careful
            peer sae_step.eager_64 --kind eager --l0 64
            topk_peers
            ;;
        topk) topk_peers ;;
        analysis) peer analysis ;;
        vit) peer vit ;;
        preprocess) peer preprocess "$images" ;;
        *) echo "no comparison named $program" >&2; exit 2 ;;
        esac
    done
done
"$venv/bin/python" bench/peers/table.py "$out"
