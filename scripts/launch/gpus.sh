#!/usr/bin/env bash
# Train on one machine with several GPUs.
#
#   scripts/launch/gpus.sh --config=configs/vit_base.py --workdir=runs/vit_base
#   scripts/launch/gpus.sh --processes=8 --config=configs/vit_base.py --workdir=runs/vit_base
#   scripts/launch/gpus.sh --processes=8 --dry-run ...      # say what would run
#
# One process drives all GPUs, which is jax's way. --processes=N starts one for each of N GPUs (of
# those in CUDA_VISIBLE_DEVICES, if that is set), which leaves more of Python to each. They find each
# other over loopback at --port=P, by default a free one. Everything else goes to mae_jax.train.
# PYTHON names the interpreter.
#
# A run that was preempted (exit status 42: all is saved) is started again and continues. SIGTERM and
# Ctrl-C are passed on and end it, with status 42 once all is saved. When one process dies, the others
# would wait for it: they have GRACE seconds (10) to say what they know of it, then they are ended.
set -uo pipefail

readonly PREEMPTED=42
python=${PYTHON:-python}
grace=${GRACE:-10}
processes=1 port="" dry_run=0 arguments=()
for argument in "$@"; do
    case $argument in
        --processes=*) processes=${argument#*=} ;;
        --port=*) port=${argument#*=} ;;
        --dry-run) dry_run=1 ;;
        --help | -h) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
        *) arguments+=("$argument") ;;
    esac
done
if ! [[ $processes =~ ^[1-9][0-9]*$ ]]; then
    echo "error: --processes=$processes must be a whole number of at least 1" >&2
    exit 2
fi
visible=()
if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    IFS=, read -ra visible <<<"$CUDA_VISIBLE_DEVICES"
    if ((processes > 1 && processes > ${#visible[@]})); then
        echo "error: --processes=$processes, but CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES" >&2
        exit 2
    fi
fi

# Print the variables of process $1, one a line; none if it is the only one.
environment() {
    ((processes > 1)) || return 0
    echo "CUDA_VISIBLE_DEVICES=${visible[$1]:-$1}"
    echo "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port"
    echo "JAX_NUM_PROCESSES=$processes"
    echo "JAX_PROCESS_ID=$1"
}

running=() stopping=0
# shellcheck disable=SC2329  # the traps call it
stop() {
    stopping=1
    ((${#running[@]})) && kill -TERM "${running[@]}" 2>/dev/null
}
trap stop TERM INT

# Start all processes and wait for them; return the status of the first that failed, or 0.
run() {
    local status=0 deadline=0 index pid one left
    if [[ -z $port ]] && ((processes > 1)); then
        local port
        port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    fi
    for ((index = 0; index < processes; index++)); do
        mapfile -t variables < <(environment "$index")
        env "${variables[@]}" "$python" -m mae_jax.train "${arguments[@]}" &
        running+=("$!")
    done
    ((stopping)) && stop
    while ((${#running[@]})); do
        left=()
        for pid in "${running[@]}"; do
            if kill -0 "$pid" 2>/dev/null; then
                left+=("$pid")
                continue
            fi
            wait "$pid"
            one=$?
            if ((one && !status)); then
                status=$one
                ((one == PREEMPTED)) || deadline=$((SECONDS + grace))
            fi
        done
        running=("${left[@]}")
        if ((deadline && SECONDS >= deadline && ${#running[@]})); then
            echo "one process ended with status $status: ending the others" >&2
            kill -KILL "${running[@]}" 2>/dev/null  # at SIGTERM they would save, for which all are needed
        fi
        sleep 0.2
    done
    return "$status"
}

if ((dry_run)); then
    port=${port:-PORT}
    for ((index = 0; index < processes; index++)); do
        mapfile -t variables < <(environment "$index")
        echo "${variables[*]}${variables[*]:+ }$(printf '%q ' "$python" -m mae_jax.train "${arguments[@]}")"
    done
    exit 0
fi
while true; do
    run
    status=$?
    if ((status != PREEMPTED || stopping)); then
        exit "$status"
    fi
    echo "preempted: starting again" >&2
done
