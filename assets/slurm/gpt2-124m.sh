#!/bin/bash
#SBATCH --job-name=gpt2 --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64
#SBATCH --time=12:00:00 --requeue --open-mode=append --signal=B:USR1@120

# One task a machine, and torchrun inside it: sbatch assets/slurm/gpt2-124m.sh
out=runs/gpt2-124m
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
resume=; [ -e $out/checkpoints/last ] && resume=--resume
srun torchrun --nnodes $SLURM_NNODES --nproc-per-node 8 --rdzv-id $SLURM_JOB_ID --rdzv-backend c10d \
  --rdzv-endpoint $head:29500 --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 --shutdown-timeout 90 \
  -m gpt2_course.train --preset gpt2-124m --out $out $resume &
step=$! warned=

# Two minutes before the time is over SLURM sends USR1 to this shell alone. srun passes it to torchrun, torchrun to
# the trainers, which save. --requeue starts a job again that lost a machine, but not one whose time is over: ask.
trap 'warned=yes; kill -USR1 $step' USR1
wait $step; status=$?
while kill -0 $step 2>/dev/null; do wait $step; status=$?; done # the warning ends a wait early
if [ "$warned" ] && grep -q '"state": "interrupted"' $out/status.json; then scontrol requeue $SLURM_JOB_ID; fi
exit $status
