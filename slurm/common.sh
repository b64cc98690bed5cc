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
#     SID_SCALE_PARTS       parts of an encoding of which an array makes some (default: its tasks)
#     SID_SCALE_HOME        the repository, for a copy of a script elsewhere (not in the file)

: "${home:?set by the script that sources this}"
# shellcheck source=/dev/null
[ ! -r ~/.config/sid_scale.env ] || source ~/.config/sid_scale.env

# The ranks have this script's environment: srun would take --export=NONE of sbatch for its own.
export SLURM_EXPORT_ENV=ALL
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
        export PATH=$venv/bin:$PATH
    elif [ -n "${SID_SCALE_VENV:-}" ]; then
        fail "SID_SCALE_VENV: there is no $venv/bin/python"
    fi
fi
# Otherwise each start would fail at its first import, and be followed by another.
"${inside[@]}" python -c 'import importlib.util as known, sys
sys.exit(not all(map(known.find_spec, ("torch", "deepspeed", "psutil"))))' ||
    fail "no python with torch, deepspeed and psutil: say where one is by SID_SCALE_VENV," \
        "SID_SCALE_MODULES or SID_SCALE_CONTAINER; where jobs do not get the environment of" \
        "sbatch (--export=NONE), in ~/.config/sid_scale.env"

# srun takes from the environment how the job was asked for. A step of this job is one task a node,
# which has all GPUs that the job asked for there. --gpus-per-task would leave it those of one task.
# A job that asks for no GPUs, but has whole nodes, has all of theirs.
one_task_a_node() {
    local tasks=${SLURM_TASKS_PER_NODE:-1}
    export SLURM_NTASKS=${SLURM_NNODES:-1} SLURM_NPROCS=${SLURM_NNODES:-1} SLURM_NTASKS_PER_NODE=1
    if [ -n "${SLURM_GPUS_PER_TASK:-}" ]; then
        [[ $tasks != *,* ]] || fail "this job's nodes have unlike numbers of tasks ($tasks), and so of" \
            "GPUs: ask for GPUs by --gpus-per-node=N"
        tasks=${tasks%%"("*} # of 4(x2)
        SLURM_GPUS_PER_NODE=$((tasks * $(gpu_count "$SLURM_GPUS_PER_TASK")))
        export SLURM_GPUS_PER_NODE
        unset SLURM_GPUS_PER_TASK SLURM_TRES_PER_TASK
    elif [ "${SLURM_GPUS_ON_NODE:-0}" != 0 ] && [ -z "${SLURM_GPUS:-}${SLURM_GPUS_PER_NODE:-}" ] &&
        ! [[ $(scontrol show job "$SLURM_JOB_ID") =~ TresPer[A-Za-z]+=[^[:space:]]*gpu ]]; then
        export SLURM_GPUS_PER_NODE=$SLURM_GPUS_ON_NODE
    fi
}

# How many GPUs a request is for: a100:2,h100:1 is 3, and a100 is 1.
gpu_count() {
    local entry sum=0
    for entry in ${1//,/ }; do
        entry=${entry##*:}
        [[ $entry =~ ^[0-9]+$ ]] || entry=1
        sum=$((sum + entry))
    done
    echo "$sum"
}

# How many GPUs this process may use: those that CUDA shows, by number, UUID or MIG instance, or
# else those that SLURM tells. CUDA shows a process one MIG instance only.
gpus_here() {
    local shown
    IFS=, read -ra shown <<<"${CUDA_VISIBLE_DEVICES:-}"
    case ${CUDA_VISIBLE_DEVICES:-} in
        MIG-*,*) echo MIG ;;
        [0-9]* | GPU-* | MIG-*) echo "${#shown[@]}" ;;
        *) gpu_count "${SLURM_GPUS_ON_NODE:-${SLURM_GPUS_PER_NODE:-}}" ;;
    esac
}

# One rank for each GPU that a step of this job has on a node. Status 75: the step did not start,
# which may pass.
ranks_per_node() {
    local step counts
    step="$(declare -f gpu_count gpus_here); echo \"gpus on \$SLURMD_NODENAME: \$(gpus_here)\""
    if ! step=$(srun bash -c "$step" 2>&1); then
        echo "$step" >&2
        [[ $step != *"generic resource"* ]] || fail "this job asks for GPUs in ways that do not" \
            "agree: ask in one, --gpus-per-node=N"
        return 75
    fi
    step=$(sed -n 's/^gpus on //p' <<<"$step" | sort)
    counts=$(cut -d' ' -f2 <<<"$step" | sort -u) # nothing, where steps may not print
    case ${counts:=$(gpus_here)} in
        0) fail "this job has no GPUs: ask for them, as by sbatch --gpus-per-node=8" ;;
        *MIG*) fail "this job has several MIG instances on a node, of which a process sees one:" \
            "ask for whole GPUs, or for one instance a node" ;;
        *[!0-9]*) fail "this job's nodes have unlike numbers of GPUs (${step//$'\n'/, }): ask for" \
            "the same on each, by --gpus-per-node=N" ;;
    esac
    echo "$counts"
}

# Where rank 0 will be, as SLURM itself reaches that node.
head_address() {
    local node address
    node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    address=$(scontrol --oneliner show node "$node" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
    echo "${address:-$node}"
}

# A port of this job's own: two jobs that share a node differ. From 32768 on systems give ports away.
port() { echo "${SID_SCALE_PORT:-$((20000 + SLURM_JOB_ID % 12000))}"; }

# Whether this job is still meant to run: not cancelled, nor requeued by somebody else.
is_wanted() {
    local answer tries=0
    until answer=$(scontrol --oneliner show job "$SLURM_JOB_ID"); do
        [ $((tries += 1)) -lt 10 ] || return 1
        sleep 30 # a controller that is being restarted
    done
    [[ $answer = *" JobState=RUNNING "* ]]
}

# sick_nodes WHEN RUN.yaml ...: what Python says of nodes, by what SLURM knows of them.
sick_nodes() {
    local when=$1
    shift
    slurm_knows | "${inside[@]}" python -m sid_scale.jobs.sick_nodes "$when" --config "$@"
}

slurm_knows() {
    local job list
    job=$(scontrol --oneliner show job "$SLURM_JOB_ID") || return 0
    echo "$job"
    for list in NodeList ReqNodeList ExcNodeList; do
        [[ $job =~ \ $list=([^\ ]+) && ${BASH_REMATCH[1]} != "(null)" ]] || continue
        echo "$list $(scontrol show hostnames "${BASH_REMATCH[1]}" | tr '\n' ' ')"
    done
    scontrol --oneliner show node
}

# leave_out LIST: this job, which is queued again, does without these nodes; none if it is empty.
leave_out() {
    local tries=0
    until scontrol update "JobId=$SLURM_JOB_ID" "ExcNodeList=$1"; do
        [ $((tries += 1)) -lt 10 ] || return 0 # told by scontrol; the next start sees to it
        sleep 1 || true
    done
    say "left out: ${1:-no nodes}"
}
