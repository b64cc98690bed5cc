#!/usr/bin/env bash
# From images to a report: encode -> distil -> consolidate -> evaluate -> report, as jobs that wait
# for each other. Prints their ids.
#
#     bash slurm/pipeline.sh --images DIR [OPTIONS] RUN.yaml [key=value ...]
#
#     --images DIR         what to encode into the run's `data`; not needed once that is there
#     --resolution R       of the images (default 512; of a teacher of pixels, its own)
#     --vae FOLDER         the VAE, if the teacher's folder does not lead to it
#     --metrics LIST       to measure (default fid)
#     --reference FILE     of real images (default: made of the run's `data`, beside it)
#     --num N              images to measure with (default 50000)
#     --first-seed S       of these images (default 0)
#     --evaluate OPTION    for `evaluate run`, again and again, as --evaluate --dtype=bfloat16;
#                          --inception and --dinov2 are those of the run's `evaluation` if not given
#     --nodes N            to distil on (default 2)
#     --gpus-per-node N    there (default 8), or TYPE:N
#     --gpu-memory GB      of a GPU, to see whether the run fits (default 80)
#     --parts N            jobs that encode (default 8)
#     --sbatch OPTION      for every job, again and again, as --sbatch --account=NAME
#     --dry-run            print what would be submitted, and submit nothing
set -Eeuo pipefail
home=${SID_SCALE_HOME:-$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")}
if [ ! -r "$home/slurm/common.sh" ]; then
    echo "error: $home is not sid_scale's repository: say where that is, by SID_SCALE_HOME=FOLDER" >&2
    exit 1
fi
source "$home/slurm/common.sh"

usage() {
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

images="" resolution="" vae="" metrics=fid reference="" num=50000 seed=0
nodes=2 gpus=8 memory=80 parts=8 dry="" common=() measuring=()
while [ $# -gt 0 ]; do
    case "$1" in
        --dry-run) dry=1 && shift && continue ;;
        --help | -h) usage ;;
        --*) [ $# -ge 2 ] || fail "$1 needs a value" ;;
        *) break ;;
    esac
    case "$1" in
        --images) images=$2 ;;
        --resolution) resolution=$2 ;;
        --vae) vae=$2 ;;
        --metrics) metrics=$2 ;;
        --reference) reference=$2 ;;
        --num) num=$2 ;;
        --first-seed) seed=$2 ;;
        --evaluate) measuring+=("$2") ;;
        --nodes) nodes=$2 ;;
        --gpus-per-node) gpus=$2 ;;
        --gpu-memory) memory=$2 ;;
        --parts) parts=$2 ;;
        --sbatch)
            case "$2" in
                --gres=*gpu* | --gpus* | -G*) fail "--sbatch $2: say it by --gpus-per-node" ;;
            esac
            common+=("$2")
            ;;
        *) fail "unknown option $1; --help lists them" ;;
    esac
    shift 2
done
[ $# -ge 1 ] || usage

# A setting of the run.
setting() {
    "${inside[@]}" python -c 'import functools, sys
from sid_scale.config.run import load_config
from sid_scale.errors import SidScaleError
try:
    config = load_config(sys.argv[2], sys.argv[3:])
    value = functools.reduce(getattr, sys.argv[1].split("."), config)
except SidScaleError as error:
    sys.exit(f"error: {error}")
print("" if value is None else value)' "$@"
}
unset SID_SCALE_PARTS # which would be of another encoding
run=$(setting run_dir "$@")
data=$(setting data "$@")
teacher=$(setting teacher "$@")
reference=${reference:-${data:+$data/statistics-$metrics.npz}}
[ -n "$reference" ] || fail "--reference: this run reads no data to take statistics of"
encodes=""
if [ -n "$data" ] && [ ! -e "$data/index.json" ]; then
    [ -n "$images" ] || fail "--images: $data holds no shards yet, so say what to encode"
    [ -n "$dry" ] || [ -e "$images" ] || fail "--images: there is no $images"
    encodes=1
fi

for detector in inception dinov2; do
    file=$(setting "evaluation.$detector" "$@")
    [[ " ${measuring[*]} " = *" --$detector"[=\ ]* ]] || [ -z "$file" ] || measuring+=("--$detector=$file")
done

# What would be missed only by the last jobs.
if [ -z "$dry" ]; then
    [ -e "$teacher" ] || fail "teacher: there is no $teacher"
    DS_ACCELERATOR=cpu "${inside[@]}" python -c 'import argparse, sys, torch
from sid_scale.errors import SidScaleError
from sid_scale.commands.evaluate import add_detectors
from sid_scale.evaluate.detectors import DetectorFiles, open_detectors
from sid_scale.evaluate.features import check_metrics
parser = argparse.ArgumentParser(allow_abbrev=False)
add_detectors(parser)
given, _ = parser.parse_known_args(sys.argv[2:])
try:
    files = DetectorFiles(given.inception, given.dinov2)
    open_detectors(check_metrics(sys.argv[1].split(",")), files, torch.device("cpu"))
except SidScaleError as error:
    sys.exit(f"error: {error}")' "$metrics" "${measuring[@]}"
fi

# Whether it fits, before it waits in a queue for days.
plan=$(DS_ACCELERATOR=cpu "${inside[@]}" python -m sid_scale memory --nodes "$nodes" \
    --gpus-per-node "${gpus##*:}" --gpu-memory "$memory" --config "$@") || {
    echo "$plan"
    [ -n "$plan" ] || exit 1
    [ -n "$dry" ] || fail "nothing was submitted; --gpu-memory says how much memory a GPU has"
}
echo "distil $1: $plan"
echo

# submit SBATCH-OPTION ... -- SCRIPT ARGUMENT ...: a job that waits for the one before.
before="" submitted=()
submit() {
    local options=("--output=$run/slurm/%x-%j.out" "${common[@]}")
    [ -z "$before" ] || options+=("--dependency=afterok:$before" --kill-on-invalid-dep=yes)
    while [ "$1" != -- ]; do options+=("$1") && shift; done
    shift
    local script=$1
    shift
    if [ -n "$dry" ]; then
        before=$(basename "$script" .sbatch | tr '[:lower:]' '[:upper:]')
        printf 'sbatch'
        printf ' %q' "${options[@]}" "slurm/$script" "$@"
        echo
    else
        mkdir -p "$run/slurm"
        before=$(sbatch --parsable "${options[@]}" "$home/slurm/$script" "$@")
        before=${before%%;*}
        submitted+=("$before")
        echo "$before  ${script%.sbatch}"
    fi
}

# All of them or none.
withdraw() {
    [ "$BASHPID" = $$ ] || exit 1 # in $(...): the script itself will be here next
    [ ${#submitted[@]} -gt 0 ] || fail "nothing was submitted"
    scancel "${submitted[@]}" || true
    fail "cancelled what was submitted: ${submitted[*]}"
}
trap withdraw ERR
vae_option=(${vae:+--vae "$vae"})
if [ -n "$encodes" ]; then
    submit "--array=0-$((parts - 1))" "--output=$run/slurm/%x-%A_%a.out" -- encode_latents.sbatch \
        --source "$images" --out "$data" --codec "$teacher" \
        ${resolution:+--resolution "$resolution"} "${vae_option[@]}"
fi
submit "--nodes=$nodes" "--gpus-per-node=$gpus" -- distill.sbatch "$@"
submit -- consolidate.sbatch "$run" "$run/published" "${vae_option[@]}"
submit "--gpus-per-node=$gpus" -- evaluate.sbatch "$reference" "$data" --generator "$run/published" \
    --out "$run/evaluation/published" --metrics "$metrics" --num "$num" --first-seed "$seed" \
    "${vae_option[@]}" "${measuring[@]}"
submit -- report.sbatch "$run" --out "$run/report.html" --generator "$run/published" "${vae_option[@]}"
