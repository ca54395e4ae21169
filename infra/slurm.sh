#!/usr/bin/env bash
# A job on Slurm. From the project's folder, with its environment active:
#
#   sbatch infra/slurm.sh jobs/webvid.yaml
#
# The job's nodes form a Ray cluster while it runs; the driver runs on the first. All nodes need the
# same project and environment, so keep them on a shared file system. Slurm passes PATH and exported
# variables to the job. Nodes with GPUs also need a C compiler and the headers of Python for Triton:
# install gcc, libc6-dev and python3-dev on them, or encoders are slower.
#
# Two minutes before the time limit, Slurm sends SIGUSR1: the job commits finished work and is queued
# again. So it is at preemption if PreemptParameters has send_user_signal. If a node with workers fails,
# the job continues without it; if the first node fails, Slurm restarts the job from its last commit.
# To stop a job after it has committed finished work:
#
#   scancel --batch --signal=TERM JOBID
#
#SBATCH --job-name=tokpipe
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --no-kill
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
set -euo pipefail
job=${1:?usage: sbatch infra/slurm.sh JOB.yaml}

fail() {
    echo "slurm.sh: $*" >&2
    exit 2
}
# sbatch runs a copy of this script, in the folder where sbatch was called.
[ -f "$job" ] || fail "no file $job in $PWD. Call sbatch from the project's folder."
ip=$(python -c "import ray.util, tokpipe; print(ray.util.get_node_ip_address())") ||
    fail "PATH has no Python with tokpipe and ray. Activate the environment before sbatch."
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
: "${nodes[0]:?scontrol names no node}"
cpus=${SLURM_CPUS_PER_TASK:-$(nproc)} # Ray would count those of the whole machine
port=$((20000 + SLURM_JOB_ID % 10000)) # one per job, and none that Linux assigns by itself

unset RAY_ADDRESS # from the shell that called sbatch
export RAY_USAGE_STATS_ENABLED=0
# Other users can reach these ports, so only processes with this job's token may use them.
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
if [ -z "${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-}" ]; then
    RAY_AUTH_TOKEN=$(python -c "import secrets; print(secrets.token_hex(32))")
    export RAY_AUTH_TOKEN
fi
# Not /tmp/ray, which may have another user's files. Paths of sockets in it must stay short.
scratch=$(mktemp -d /tmp/tokpipe-XXXXXX)
trap 'rm -rf "$scratch"' EXIT
export RAY_TMPDIR=${RAY_TMPDIR:-$scratch}

# `ray symmetric-run` would start its command without RAY_ADDRESS, give up on slow nodes, and hide
# failures. The driver needs none of its waiting: it uses nodes as they join.
start=(ray start --log-color=false --block --num-cpus="$cpus")
"${start[@]}" --head --node-ip-address="$ip" --port="$port" >"$scratch/log" 2>&1 &
ray=$!
until (: >"/dev/tcp/$ip/$port") 2>/dev/null; do
    if ! kill -0 "$ray" 2>/dev/null; then
        cat "$scratch/log" >&2
        fail "Ray did not start on ${nodes[0]}, for the reason above."
    fi
    sleep 1
done
workers=
if [ "${#nodes[@]}" -gt 1 ]; then
    # Starting Ray on a busy node can time out, so it is tried again.
    # shellcheck disable=SC2016
    srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --exclude="${nodes[0]}" \
        --cpus-per-task="$cpus" --no-kill --kill-on-bad-exit=0 \
        bash -c 'for _ in {1..10}; do "$@"; sleep 5; done
            echo "slurm.sh: Ray does not stay up on $HOSTNAME, which is idle from now on" >&2' \
        start "${start[@]}" --address="$ip:$port" &
    workers=$!
fi
RAY_ADDRESS=$ip:$port python -m tokpipe.run "$job" &
driver=$!

requeue=
trap 'kill -TERM "$driver"' TERM
trap 'requeue=yes; kill -TERM "$driver"' USR1
while :; do # a signal ends `wait` early
    status=0
    wait "$driver" || status=$?
    kill -0 "$driver" 2>/dev/null || break
done
ended=0
wait "$driver" 2>/dev/null || ended=$?
[ "$ended" -eq 127 ] || status=$ended # 127: the status above is the driver's
kill -TERM $workers "$ray" 2>/dev/null || :
wait || :
if [ -n "$requeue" ] && [ "$status" -ge 128 ]; then # stopped with work left
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
