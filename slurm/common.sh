# shellcheck shell=bash
# Sourced by the scripts beside it, in a job. Needs $home, the repository's root.
#
# What a user sets, in the environment of `sbatch` or in ~/.config/sid_scale.env:
#
#     SID_SCALE_VENV        a virtual environment's folder (default: .venv in the repository)
#     SID_SCALE_MODULES     environment modules to load, separated by spaces
#     SID_SCALE_CONTAINER   an image for apptainer, in which everything runs
#     SID_SCALE_BIND        what else that sees, as apptainer's --bind takes it: /data,/scratch
#     SID_SCALE_PORT        where ranks meet (default: derived from the job's id)
#     SID_SCALE_REQUEUES    requeues in a row that may bring nothing (default 3)

: "${home:?set by the script that sources this}"
# shellcheck source=/dev/null
[ ! -r "$HOME/.config/sid_scale.env" ] || source "$HOME/.config/sid_scale.env"

set -a
# shellcheck source=slurm/network.env
source "$home/slurm/network.env"
set +a
export PYTHONPATH=$home${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

say() { echo "[$(date +%H:%M:%S)] $*"; }

fail() {
    echo "error: $*" >&2
    exit 1
}

# What comes before a command for it to run where sid_scale is installed.
inside=()
if [ -n "${SID_SCALE_MODULES:-}" ]; then
    # shellcheck disable=SC2086
    module load $SID_SCALE_MODULES
fi
if [ -n "${SID_SCALE_CONTAINER:-}" ]; then
    binds=$home,$PWD${SID_SCALE_BIND:+,$SID_SCALE_BIND}
    # shellcheck disable=SC2034
    inside=(apptainer exec --nv --bind "$binds" "$SID_SCALE_CONTAINER")
else
    venv=${SID_SCALE_VENV:-$home/.venv}
    if [ -x "$venv/bin/python" ]; then
        PATH=$venv/bin:$PATH
    elif [ -n "${SID_SCALE_VENV:-}" ]; then
        fail "SID_SCALE_VENV: there is no $venv/bin/python"
    fi
fi

# One rank for each GPU that was asked for on a node (a whole node may have more); without any, one.
ranks_per_node() {
    local gpus=${SLURM_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
    case "${CUDA_VISIBLE_DEVICES:-}" in
        "" | 0 | 0,*) ;;
        *) fail "this job shares its nodes' GPUs (CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES), and" \
            "DeepSpeed counts from 0: ask for whole nodes (--exclusive)" ;;
    esac
    echo "${gpus##*:}" # of a100:8, 8
}

# Where rank 0 will be, as SLURM itself reaches that node.
head_address() {
    local node address
    node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    address=$(scontrol --oneliner show node "$node" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
    echo "${address:-$node}"
}

# A port of this job's own: two jobs that share a node differ.
port() { echo "${SID_SCALE_PORT:-$((20000 + SLURM_JOB_ID % 20000))}"; }

# Whether this job is still meant to run: not cancelled, nor requeued by somebody else.
is_wanted() {
    local answer tries=0
    until answer=$(scontrol --oneliner show job "$SLURM_JOB_ID"); do
        [ $((tries += 1)) -lt 10 ] || return 1
        sleep 30 # a controller that is being restarted
    done
    [[ $answer = *" JobState=RUNNING "* ]]
}
