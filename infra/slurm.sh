#!/usr/bin/env bash
# A job on Slurm: sbatch infra/slurm.sh jobs/webvid.yaml
#
# One task per node; together they form a Ray cluster while the job runs. Slurm sends SIGTERM two minutes
# before preemption; the job then commits finished work and is queued again.
#SBATCH --job-name=tokpipe
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
set -euo pipefail
job=${1:?usage: sbatch infra/slurm.sh JOB.yaml}
# Not with `head`, which closes the pipe and would sometimes end the script.
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]:?scontrol names no node}
port=$((20000 + SLURM_JOB_ID % 20000)) # so that jobs of several users on one node do not meet
export RAY_USAGE_STATS_ENABLED=0

srun --kill-on-bad-exit=1 ray symmetric-run \
    --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
    -- python -m tokpipe.run "$job" &
step=$!
trap 'kill -TERM "$step"' TERM # srun hands it on to the driver
status=0
wait "$step" || status=$?
if kill -0 "$step" 2>/dev/null; then # the trap ended the first wait
    status=0
    wait "$step" || status=$?
fi
exit "$status"
