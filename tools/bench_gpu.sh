#!/usr/bin/env bash
# Measures the iteration on the GPU that is here (on the CPU where there is none), one table:
#
#     bash tools/bench_gpu.sh FOLDER [ROW ...]
#
# A ROW is "SIZE MICRO_BATCH ACTIVATIONS eager|compile own|plain|both"; instead of a size of EDM2 a
# preset of pixels, which has no plain iteration: "edm-cifar10-cond-sida 32 keep eager own".
# Without any: XS, M and XXL at several micro-batches, with and without compiled blocks, beside the
# plain iteration in bfloat16 (XXL's plain iteration in runs of its own: both do not fit one GPU).
# FOLDER gets results.jsonl, table.txt and, of the first row, profiles of one iteration: own.txt,
# own.json (for ui.perfetto.dev), plain.txt and plain.json. The column "waits" counts how often an
# iteration of two micro-batches an update makes the host wait for the GPU.
#
# DTYPE, STAGE and ROUNDS in the environment change what they say.
set -euo pipefail
cd "$(dirname "$0")/.."
refuse() {
    echo "$1" >&2
    exit 2
}
usage="usage: bash tools/bench_gpu.sh FOLDER [ROW ...], a row \"SIZE MICRO_BATCH ACTIVATIONS eager|compile own|plain|both\""
[[ $# -gt 0 && $1 != -* ]] || refuse "$usage"
folder=$(realpath -m "$1")
shift
if (($# == 0)); then
    set -- \
        "xs 64 keep eager both" "xs 64 keep compile both" "xs 128 keep eager both" \
        "xs 128 keep compile both" "m 32 keep eager both" "m 32 keep compile both" \
        "m 64 checkpoint eager both" "m 64 checkpoint compile both" \
        "xxl 2 keep eager own" "xxl 2 keep eager plain" "xxl 16 keep eager own" \
        "xxl 16 keep compile own" "xxl 32 checkpoint eager own" "xxl 64 checkpoint eager own" \
        "xxl 64 checkpoint compile own"
fi

form='^[a-z0-9-]+ [1-9][0-9]* [a-z]+ (eager|compile) (own|plain|both)$'
for row in "$@"; do
    [[ $row =~ $form ]] || refuse "error: row \"$row\"; $usage"
done

mkdir -p "$folder"
: >"$folder/results.jsonl"
profile=(--profile "$folder")
for row in "$@"; do
    read -r size micro_batch activations blocks which <<<"$row"
    if [[ $size == edm-* ]]; then options=(--config "$size"); else options=(--size "$size"); fi
    options+=(--micro-batch "$micro_batch" --batch $((2 * micro_batch)))
    options+=(--activations "$activations" --which "$which" --rounds "${ROUNDS:-5}" --json)
    options+=(--dtype "${DTYPE:-bfloat16}" --plain-dtype "${DTYPE:-bfloat16}")
    options+=(--stage "${STAGE:-2}" "${profile[@]}")
    if [[ $blocks == compile ]]; then options+=(--compile); fi
    echo "$row" >&2
    if python tools/bench_step.py "${options[@]}" >"$folder/result" 2>"$folder/errors"; then
        tail -n 1 "$folder/result" >>"$folder/results.jsonl"
    else # too large for the GPU, most likely: the others may fit
        error=$(grep -v '^\s*$' "$folder/errors" | tail -n 1)
        python -c 'import json, sys; print(json.dumps({"row": sys.argv[1], "error": sys.argv[2]}))' \
            "$row" "$error" >>"$folder/results.jsonl"
    fi
    profile=()
done
rm -f "$folder/result" "$folder/errors"
python tools/bench_table.py "$folder/results.jsonl" | tee "$folder/table.txt"
