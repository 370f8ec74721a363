#!/bin/bash
#SBATCH --job-name=keras-resnet
#SBATCH --nodes=1                 # several: sbatch --nodes=4 slurm.sh ...
#SBATCH --ntasks-per-node=1       # one process on each node, which uses all of its GPUs
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300         # five minutes before the time limit, to the training itself
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Trains on one or several nodes; a run that reaches the time limit is queued again and continues:
#   sbatch examples/slurm.sh --workdir /shared/runs/r50 --dataset imagenet2012 --model resnet50 --recipe torchvision_v2
#
# The workdir is a folder that all nodes see, or object storage. SIGTERM ends a run on one node after a checkpoint, with
# status 143; on several nodes at once, since they cannot agree on a step: there the last checkpoint counts.

export workers
workers=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed 's/.*/"&:2222"/' | paste -sd,)

status=0
srun --kill-on-bad-exit bash -c '
    if [ "$SLURM_NNODES" -gt 1 ]; then
        task="{\"type\": \"worker\", \"index\": $SLURM_NODEID}"
        export TF_CONFIG="{\"cluster\": {\"worker\": [$workers]}, \"task\": $task}"
    fi
    exec keras-resnet train --resume --checkpoint-every 500 "$@"
' train "$@" || status=$?

if [ "$status" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
