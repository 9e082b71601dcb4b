#!/usr/bin/env bash
# What every host of a pod runs. gke.py, xpk.sh and queued_resource.sh start it; it can be tried on any machine:
#
#   bash launch/worker.sh --dry-run tpu --config=configs/t2i_3b.py --workdir=/shared/runs/t2i_3b
#
# A run that SIGTERM stops saves a checkpoint and ends with status 0, which a scheduler takes for finished. Here it ends
# with 143, so that it is started again. Other statuses are passed on: 0 finished, 2 a mistake in the command.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "worker.sh: $*" >&2; exit 2; }

dry_run=
if [[ ${1:-} == --dry-run ]]; then dry_run=1; shift; fi
platform=${1:-}
[[ $platform == tpu || $platform == gpu || $platform == cpu ]] ||
  fail "the platform is '$platform'; give tpu, gpu or cpu, then the arguments of train"
shift
[[ " $* " == *" --config="* && " $* " == *" --workdir="* ]] || fail "train needs --config=FILE and --workdir=DIR"

# shellcheck source=launch/xla_flags.sh
source launch/xla_flags.sh "$platform"
command=(python -m mf_jax train "$@" --distributed=auto)
if [[ $dry_run ]]; then
  xla_flags_show
  printf '%q ' "${command[@]}"; echo
  exit
fi

train=
stopped=
trap 'stopped=1; [[ -z $train ]] || kill -TERM "$train"' TERM
"${command[@]}" &
train=$!
[[ -z $stopped ]] || kill -TERM "$train"
while true; do
  status=0
  wait "$train" || status=$?
  kill -0 "$train" 2>/dev/null || break # else a signal ended the waiting, not the training
done
[[ $status != 0 || -z $stopped ]] || status=143
exit "$status"
