#!/usr/bin/env bash
# Trains on a SLURM cluster: a process a node, with all the GPUs or all the cores of that node.
#
#     sbatch --nodes 4 launch/cluster/slurm.sh RUN_FOLDER --preset atis-lstm --data-path ATIS
#     sbatch --gpus-per-node 8 launch/cluster/slurm.sh RUN_FOLDER --preset cifar10-resnet20 --data-path CIFAR
#
# To be submitted from the checkout, in its environment. All nodes must see the checkout and
# RUN_FOLDER; what follows are flags of launch.train. Two minutes before its time is up the job
# saves a checkpoint and is queued again; submitted again, it goes on in the same folder.
#
#SBATCH --job-name=rps
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail

folder=${1:?expected the folder of the run}
shift

# JAX finds the job by what srun sets. A process that fails ends the others; binding would leave one
# task a node with one core.
status=0
srun --kill-on-bad-exit=1 --cpu-bind=none \
  "${PYTHON:-python}" -m launch.train --output-dir "$folder" --auto-resume "$@" || status=$?

# 143: stopped by SIGTERM, with a checkpoint. The job still runs only if its time is nearly up: one
# that was cancelled is not queued again.
if [ "$status" -eq 143 ]; then
  state=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)
  if [ "$state" = RUNNING ]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$status"
