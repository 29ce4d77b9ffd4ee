#!/usr/bin/env bash
# Train on a TPU slice: the same command on every host of it, by gcloud.
#
#   scripts/launch/tpu.sh --name=my-slice --zone=us-central2-b --project=my-project \
#       --config=configs/vit_base.py --workdir=gs://my-bucket/vit_base
#   scripts/launch/tpu.sh --dry-run --name=...      # say what would run
#
# --directory=DIR is where the repository lies on the hosts (default: mae_jax, in the home directory),
# --python=PATH the interpreter there (default: .venv/bin/python). --zone and --project may be left
# to gcloud's own settings. Everything else goes to mae_jax.train; the work directory must be one that
# all hosts see, such as a bucket (that needs the extra [gcs]). Install once, on all hosts:
#
#   gcloud compute tpus tpu-vm ssh my-slice --zone=... --worker=all --command="git clone URL mae_jax \
#       && cd mae_jax && python3 -m venv .venv && .venv/bin/pip install -e '.[tpu,gcs]'"
#
# After a preemption create the slice again and give the same command: it continues. When the process
# of one host dies, the others notice after `recovery.heartbeat_timeout` seconds (30) and end too.
#
# On Kubernetes (GKE) a JobSet does the work of this script: one Job with as many pods as the slice
# has hosts, `MAE_JAX_DISTRIBUTED=1` in their environment, `backoffLimit: 0` in the Job, and
# `failurePolicy: {maxRestarts: 1000}` in the JobSet. When one pod fails or is preempted, the JobSet
# ends its siblings and starts all of them again, and the run continues.
set -euo pipefail

name="" directory=mae_jax python=.venv/bin/python dry_run=0 place=() arguments=()
for argument in "$@"; do
    case $argument in
        --name=*) name=${argument#*=} ;;
        --zone=* | --project=*) place+=("$argument") ;;
        --directory=*) directory=${argument#*=} ;;
        --python=*) python=${argument#*=} ;;
        --dry-run) dry_run=1 ;;
        --help | -h) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
        *) arguments+=("$argument") ;;
    esac
done
if [[ -z $name ]]; then
    echo "error: which slice? Give --name=NAME" >&2
    exit 2
fi

# MAE_JAX_DISTRIBUTED: the hosts find each other, also where only the metadata server names them.
remote=$(printf '%q ' "$python" -m mae_jax.train "${arguments[@]}")
remote="cd $(printf '%q' "$directory") && exec env MAE_JAX_DISTRIBUTED=1 ${remote% }"
command=(gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all "--command=$remote")
printf '%q ' "${command[@]}"
echo
((dry_run)) && exit 0
exec "${command[@]}"
