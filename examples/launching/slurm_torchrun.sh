#!/bin/bash
# The ranks of a run on two machines with eight GPUs each, by torchrun: sbatch slurm_torchrun.sh
# archon-slurm does this, and restarts and servers too: archon train run.yaml scheduler.type=slurm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --signal=TERM@300
#SBATCH --requeue
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun \
    --nnodes="$SLURM_NNODES" \
    --nproc-per-node=8 \
    --rdzv-backend=c10d \
    --rdzv-endpoint="$head:29500" \
    --rdzv-id="$SLURM_JOB_ID" \
    -m archon_core.cli train run.yaml \
    actor.backend=archon:d8t2 \
    cluster.n_nodes=2 \
    cluster.n_gpus_per_node=8 \
    trainer.auto_resume=true
