#!/usr/bin/env bash
# Train on a Slurm cluster, one process for each GPU of each node.
#
#   sbatch scripts/launch/slurm.sh --config=configs/vit_base.py --workdir=runs/vit_base
#   sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 scripts/launch/slurm.sh --config=...
#   sbatch --nodes=4 --ntasks-per-node=1 --gpus-per-node=8 scripts/launch/slurm.sh --config=...
#   bash scripts/launch/slurm.sh --dry-run --config=...      # say what the job would run
#
# The third line has one process for each node, which drives all GPUs of it. Options of sbatch stand
# before the script, everything behind it goes to mae_jax.train; submit from the repository. PYTHON
# names the interpreter. The work directory must lie where all nodes see it.
#
# Ask for GPUs by --gpus-per-node, not --gpus-per-task: jax takes the GPU of its task's number among
# those that the task sees, so each must see all of its node.
#
# Five minutes before the time is over, and on preemption, the processes get SIGTERM, save, and end
# with status 42; the job is queued again then, and the same command continues. When one process
# dies, srun ends the others, which would wait for it.
#
#SBATCH --job-name=mae_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail

readonly PREEMPTED=42
dry_run=0 arguments=()
for argument in "$@"; do
    case $argument in
        --dry-run) dry_run=1 ;;
        --help | -h) sed -n '2,/^#SBATCH/{/^#SBATCH/!s/^# \{0,1\}//p}' "$0"; exit 0 ;;
        *) arguments+=("$argument") ;;
    esac
done

# A task that is alone on its node would otherwise take the first GPU only.
tasks=${SLURM_NTASKS_PER_NODE:-8} gpus=${SLURM_GPUS_ON_NODE:-${SLURM_GPUS_PER_NODE:-}}
if [[ $tasks == 1 && $gpus =~ ^[0-9]+$ ]]; then
    JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))
    export JAX_LOCAL_DEVICE_IDS
    echo "JAX_LOCAL_DEVICE_IDS=$JAX_LOCAL_DEVICE_IDS"
fi

# srun ends all processes when one ends with a status other than 0. So a preempted one ends with 0
# here, for the others to finish saving, and leaves a mark for this script, which runs on the first
# node of the job beside some of the processes. Slurm signals the shell around a process too.
mark=${TMPDIR:-/tmp}/mae_jax_preempted_${SLURM_JOB_ID:-0}
# shellcheck disable=SC2016  # the shell of each process expands it
process='trap : TERM; "$@"; status=$?; ((status == 42)) || exit "$status"; touch "$0"'
command=(srun --kill-on-bad-exit=1 --gpu-bind=none
    bash -c "$process" "$mark" "${PYTHON:-python}" -m mae_jax.train "${arguments[@]}")
printf '%q ' "${command[@]}"
echo
((dry_run)) && exit 0

rm -f "$mark"
# Where Slurm signals the batch script too, it goes on waiting while its processes save.
trap 'signalled=1' TERM
"${command[@]}" &
signalled=1
while ((signalled)); do
    signalled=0
    wait "$!"
    status=$?
done
if ((status == 0)) && [[ -e $mark ]]; then
    rm -f "$mark"
    echo "preempted: all is saved, queueing again"
    scontrol requeue "$SLURM_JOB_ID" && exit 0
    exit "$PREEMPTED"
fi
exit "$status"
