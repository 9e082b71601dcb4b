#!/usr/bin/env bash
# A GPU cluster with Slurm: one process per node, which drives all GPUs of its node.
#
#   bash launch/slurm.sh --nodes=4 --gpus-per-node=8 --time=24:00:00 -- \
#       --config=configs/t2i_3b.py --workdir=/shared/runs/t2i_3b
#
# submits the job; with --dry-run first it prints what would be submitted and run. Every other option before `--` goes
# to sbatch as it is (--partition=..., --account=..., --job-name=...). Once, on the login node, on a file system that
# all nodes see, as the workdir must be:
#
#   python3 -m venv .venv && .venv/bin/pip install -e ".[cuda]"
#
# Five minutes ahead of the time limit the run gets SIGTERM, saves, and the job goes back into the queue; so it does
# after a preemption (in partitions with PreemptMode=REQUEUE) and after a node has failed. A run that fails by itself is
# not started again. `scancel JOB` ends it for good; `scancel --batch --signal=TERM JOB` saves and requeues it now.
set -euo pipefail

fail() { echo "slurm.sh: $*" >&2; exit 2; }

if [[ ${1:-} != --in-job ]]; then
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  dry_run='' nodes='' gpus='' options=()
  while [[ $# -gt 0 && $1 != -- ]]; do
    case $1 in
      --dry-run) dry_run=1 ;;
      --nodes=*) nodes=${1#*=} ;;
      --gpus-per-node=*) gpus=${1#*=} ;;
      -*) options+=("$1") ;;
      *) fail "'$1' is not an option; write options as --NAME=VALUE, and the arguments of train after --" ;;
    esac
    shift
  done
  [[ $nodes =~ ^[1-9][0-9]*$ ]] || fail "--nodes is '$nodes'; give the number of nodes, as in --nodes=4"
  [[ $gpus =~ ^[1-9][0-9]*$ ]] || fail "--gpus-per-node is '$gpus'; give the GPUs of a node, as in --gpus-per-node=8"
  [[ " $* " == *" --config="* && " $* " == *" --workdir="* ]] ||
    fail "train needs --config=FILE and --workdir=DIR; write them after --"
  shift
  submit=(
    sbatch --nodes="$nodes" --gpus-per-node="$gpus" --ntasks-per-node=1
    --exclusive --mem=0            # all cores and all memory of the nodes, for the data workers
    --requeue --open-mode=append   # the same job, after a preemption too, with one log
    --signal=B:TERM@300            # to this script, ahead of the time limit
    --job-name=mf_jax --output=%x-%j.log
    "${options[@]}" launch/slurm.sh --in-job "$gpus" "$@"
  )
  if [[ $dry_run ]]; then
    printf '%q ' "${submit[@]}"; printf '\n\n# in the job, %s processes:\n' "$nodes"
    exec bash launch/slurm.sh --in-job "$gpus" --dry-run "$@"
  fi
  exec "${submit[@]}"
fi

# In the job. sbatch runs a copy of this file, in the directory that it was submitted from.
gpus=$2
shift 2
dry_run=
if [[ ${1:-} == --dry-run ]]; then dry_run=1; shift; fi
# shellcheck source=launch/xla_flags.sh
source launch/xla_flags.sh gpu
JAX_LOCAL_DEVICE_IDS=$(seq --separator=, 0 $((gpus - 1))) # else jax gives a Slurm task the one GPU of its own number
export JAX_LOCAL_DEVICE_IDS
python=.venv/bin/python
# --kill-on-bad-exit: the others would wait for a dead process. --cpu-bind=none: to one core, without it.
command=(srun --kill-on-bad-exit=1 --cpu-bind=none "$python" -m mf_jax train "$@" --distributed=auto)
if [[ $dry_run ]]; then
  xla_flags_show
  echo "JAX_LOCAL_DEVICE_IDS=$JAX_LOCAL_DEVICE_IDS"
  printf '%q ' "${command[@]}"; echo
  exit
fi
[[ -x $python ]] ||
  fail "there is no $python in $PWD; install with: python3 -m venv .venv && .venv/bin/pip install -e '.[cuda]'"

stopped=
trap 'stopped=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM # to the processes of the job, not to this script
"${command[@]}" &
srun=$!
while true; do
  status=0
  wait "$srun" || status=$?
  kill -0 "$srun" 2>/dev/null || break # else a signal ended the waiting, not the training
done
# A run that SIGTERM stopped has status 0 too. Of a preemption Slurm tells the processes but not this script, and takes
# the job for completed when they end in time.
if scontrol show job "$SLURM_JOB_ID" | grep --quiet 'PreemptTime=[0-9]'; then stopped=1; fi
if [[ $status == 0 && $stopped ]]; then
  echo "stopped early; the job goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
