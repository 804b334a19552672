#!/usr/bin/env bash
# A Slurm array: every task runs its shard of the ladder's rungs, one GPU each. From the suite's folder, which all nodes
# see, as they see RUN_DIR:
#
#   .venv/bin/replicate ladder -f params/gpu.yaml            # once: shards are of a ladder that is there
#   sbatch --array=1-8 recipes/slurm.sh -f params/gpu.yaml   # what follows is handed to `replicate sweep`
#
# Tasks may be killed, requeued and submitted again in any number: what has its record is not run again. Status 1 of a
# task says that some job failed: RUN_DIR/failures-I-of-N.json. When all have ended, `replicate sweep` with the same
# arguments finds every record, or runs what is missing.
#SBATCH --job-name=replicate
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --gres=gpu:1
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=slurm-%A-%a.out
set -euo pipefail
if [[ -z ${SLURM_ARRAY_TASK_ID:-} ]]; then
    echo "slurm.sh: expected a task of an array, got none; submit with sbatch --array=1-N" >&2
    exit 2
fi
# The task's place in its array, A-B or A-B:STEP. One task submitted alone (--array=3) is the only shard: all that is left.
place=$(((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN) / ${SLURM_ARRAY_TASK_STEP:-1} + 1))
exec "${REPLICATE:-.venv/bin/replicate}" sweep --shard "$place/$SLURM_ARRAY_TASK_COUNT" "$@"
