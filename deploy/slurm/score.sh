#!/bin/bash
# A Slurm array that scores a corpus in 16 parts, on four GPUs each, and then selects and exports:
#
#   scores=$(sbatch --parsable deploy/slurm/score.sh configs/best_of_n.yaml runner.workers=4)
#   sbatch --dependency=afterok:"$scores" --wrap 'bestkept run configs/best_of_n.yaml'
#
# Submit it from a folder that all nodes share, with bestkept on PATH. A task that fails with exit code 5 is retried once, and
# scores the missing part; a task whose node is lost is queued again. Not run on a cluster.
#SBATCH --job-name=bestkept-score
#SBATCH --array=0-15
#SBATCH --gres=gpu:4
#SBATCH --requeue
#SBATCH --output=bestkept-%A-%a.log
set -uo pipefail
: "${1:?usage: sbatch score.sh CONFIG [KEY=VALUE]...}"

bestkept score "$@" --shard auto --json-logs
code=$?
if [ "$code" -eq 5 ]; then
    bestkept score "$@" --shard auto --json-logs
    code=$?
fi
exit "$code"
