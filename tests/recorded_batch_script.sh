#!/bin/bash

# Parameters
#SBATCH --account=abc@v100
#SBATCH --array=0-2%2
#SBATCH --comment='wattflow demo'
#SBATCH --constraint='v100-32g&ib'
#SBATCH --cpus-per-task=10
#SBATCH --error='/shared/o'"'"'brien sweeps/demo/submitit/demo-00000000/%A_%a_0_log.err'
#SBATCH --exclusive
#SBATCH --gres=gpu:v100:4
#SBATCH --hint=nomultithread
#SBATCH --hold
#SBATCH --job-name=demo-00000000
#SBATCH --mem=184832M
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output='/shared/o'"'"'brien sweeps/demo/submitit/demo-00000000/%A_%a_0_log.out'
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --reservation=friday
#SBATCH --signal=USR2@90
#SBATCH --time=90
#SBATCH --wckey=energy

# setup
module load cuda/12.4
source $HOME/venv/bin/activate
export SRUN_CPUS_PER_TASK=10
export SLURM_EXPORT_ENV=ALL
jobs='/shared/o'"'"'brien sweeps/demo/submitit/demo-00000000'
ln -sf "${SLURM_ARRAY_JOB_ID}_submitted.pkl" "$jobs/${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}_submitted.pkl"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/shared/o'"'"'brien sweeps/demo/submitit/demo-00000000/%j_%t_log.out' --error '/shared/o'"'"'brien sweeps/demo/submitit/demo-00000000/%j_%t_log.err' --output '/shared/o'"'"'brien sweeps/demo/submitit/demo-00000000/%A_%a_%t_log.out' --error '/shared/o'"'"'brien sweeps/demo/submitit/demo-00000000/%A_%a_%t_log.err' --kill-on-bad-exit=1 --cpu-bind=cores singularity exec --nv 'my image.sif' python -P -u -m wattflow.slurm.guard -u -m submitit.core._submit '/shared/o'"'"'brien sweeps/demo/submitit/demo-00000000'
