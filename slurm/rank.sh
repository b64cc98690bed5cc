#!/usr/bin/env bash
# A rank of distill.sbatch, which DeepSpeed's launcher starts with CUDA_VISIBLE_DEVICES counted from
# 0. The job's GPUs may have other numbers, or be named by UUID: $devices is what SLURM said.
set -euo pipefail
[ -z "${devices:-}" ] || export CUDA_VISIBLE_DEVICES=$devices
exec python -u -m sid_scale.train "$@"
