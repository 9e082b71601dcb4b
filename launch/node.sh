#!/usr/bin/env bash
# One machine with several GPUs, or one TPU VM: one process, which drives all its devices.
#
#   bash launch/node.sh gpu --config=configs/t2i_3b.py --workdir=runs/t2i_3b
#
# with --dry-run first it prints what would be run. After a crash it starts again from the latest checkpoint, three
# times at most; not after a mistake in the command (status 2). SIGTERM and Ctrl-C save and end it. On a machine that
# can be preempted, start the same command at boot (@reboot in crontab, a systemd unit): it goes on where it was.
set -euo pipefail

fail() { echo "node.sh: $*" >&2; exit 2; }

dry_run=
if [[ ${1:-} == --dry-run ]]; then dry_run=1; shift; fi
platform=${1:-}
[[ $platform == tpu || $platform == gpu || $platform == cpu ]] ||
  fail "the platform is '$platform'; give gpu, tpu or cpu, then the arguments of train"
shift
[[ " $* " == *" --config="* && " $* " == *" --workdir="* ]] || fail "train needs --config=FILE and --workdir=DIR"

# shellcheck source=launch/xla_flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/xla_flags.sh" "$platform"
command=(python -m mf_jax train "$@")
if [[ $dry_run ]]; then
  xla_flags_show
  printf '%q ' "${command[@]}"; echo
  exit
fi

train=
stopped=
trap 'stopped=1; [[ -z $train ]] || kill -TERM "$train"' TERM INT
for attempt in 1 2 3 4; do
  "${command[@]}" &
  train=$!
  [[ -z $stopped ]] || kill -TERM "$train"
  while true; do
    status=0
    wait "$train" || status=$?
    kill -0 "$train" 2>/dev/null || break # else a signal ended the waiting, not the training
  done
  [[ $status != 0 && $status != 2 && -z $stopped && $attempt != 4 ]] || break
  echo "node.sh: training ended with status $status; starting again ($attempt of 3)" >&2
done
exit "$status"
