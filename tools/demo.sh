#!/usr/bin/env bash
# The whole road on real handwritten digits: shards, distillation, judgement of decoded images.
#
#     bash tools/demo.sh                           minutes on two cores; see docs/demo.md
#     bash tools/demo.sh --preset digits           another preset of the digits: SiDA
#     bash tools/demo.sh --full                    the long run
#     bash tools/demo.sh --short                   a taste, for CI
#
# Leaves in the preset's run_dir (by default runs/demo/): summary.json, samples.png, curve.png,
# tensorboard/, generator/. With a GPU it trains there in bfloat16, one rank a GPU. RUN_DIR puts it
# elsewhere.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/install.sh

presets=$(cd sid_scale/presets && echo digits*.yaml)
presets=${presets//.yaml/}
usage() {
    echo "usage: bash tools/demo.sh [--preset NAME] [--full | --short]; presets: $presets" >&2
    exit 2
}
preset=digits-latents-gdd length=
while [ $# -gt 0 ]; do
    case "$1" in
        --preset) [ $# -ge 2 ] || usage; preset=$2; shift ;;
        --full | --short) length=$1 ;;
        *) usage ;;
    esac
    shift
done
case " $presets " in *" $preset "*) ;; *) usage ;; esac
install_everything dev

read -r run batch images ramp_down snapshots < <(python -c '
import sys
from sid_scale.config.run import load_config
c = load_config(sys.argv[1])
ramp_down = c.learning_rate.ramp_down_images
print(c.run_dir, c.batch_size, c.total_images, ramp_down, c.snapshot.every_images)' "$preset")
preset_images=$images
case "$length" in
    --full) images=$((images * 4)) snapshots=$((snapshots * 2)) ;;
    --short) images=1920 snapshots=960 ;;
esac
ramp_down=$((ramp_down * images / preset_images)) # the same share of the run
run=${RUN_DIR:-$run}

began=$(date +%s)
cores=$(env -u OMP_NUM_THREADS nproc) # nproc minds that variable
if [ -e "$run" ] && [ ! -d "$run/shards" ] && [ -n "$(ls -A "$run")" ]; then
    echo "$run holds something else than a demo: set RUN_DIR to another folder" >&2
    exit 2
fi
rm -rf "$run"
if gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l) && [ "$gpus" -gt 0 ]; then
    ranks=$((gpus < 2 ? gpus : 2)) deepspeed=ds_configs/zero2.json
else
    ranks=2 deepspeed=ds_configs/cpu.json
    export OMP_NUM_THREADS=$(((cores + 1) / 2))
fi

port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
python -m sid_scale.demo prepare "$run" --preset "$preset"
deepspeed --num_gpus "$ranks" --master_port "$port" --module sid_scale.train --config "$preset" \
    run_dir="$run" data="$run/shards" deepspeed="$deepspeed" micro_batch=$((batch / ranks)) \
    total_images="$images" learning_rate.ramp_down_images="$ramp_down" \
    snapshot.every_images="$snapshots"
OMP_NUM_THREADS=$cores python -m sid_scale.demo judge "$run" --began "$began"
echo "look at $run/samples.png and $run/curve.png"
