#!/usr/bin/env bash
# TPU slices on GKE through XPK (pip install xpk), on a cluster that `xpk cluster create` made:
#
#   bash launch/xpk.sh --cluster=CLUSTER --name=t2i-3b --type=v5p-128 --slices=2 --image=IMAGE -- \
#       --config=configs/t2i_3b.py --workdir=/shared/runs/t2i_3b
#
# --type is XPK's: v5litepod-N and v6e-N count chips, v5p-N counts cores, two per chip. IMAGE is launch/Dockerfile,
# built and pushed; the workdir lies on a storage of the cluster, attached with --storage=NAME (xpk storage). --dry-run
# prints the command. Other options before `--` go to xpk (--zone=..., --project=..., --priority=...).
#
# After a preemption or a crash all slices start again and go on from the latest checkpoint, up to 20 times; after a
# mistake in the command (status 2) they do not. End it with: xpk workload delete --cluster=CLUSTER --workload=NAME
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "xpk.sh: $*" >&2; exit 2; }

dry_run='' cluster='' name='' type='' slices=1 image='' options=()
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --dry-run) dry_run=1 ;;
    --cluster=*) cluster=${1#*=} ;;
    --name=*) name=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    -*) options+=("$1") ;;
    *) fail "'$1' is not an option; write options as --NAME=VALUE, and the arguments of train after --" ;;
  esac
  shift
done
[[ $cluster && $name && $image ]] || fail "needs --cluster=CLUSTER, --name=NAME and --image=IMAGE"
[[ $type =~ ^(v5litepod|v5p|v6e)-[1-9][0-9]*$ ]] || fail "--type is '$type'; give v5litepod-N, v5p-N or v6e-N"
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices is '$slices'; give a number of slices, as in --slices=2"
[[ " $* " == *" --config="* && " $* " == *" --workdir="* ]] ||
  fail "train needs --config=FILE and --workdir=DIR; write them after --"
shift

# exec: XPK passes SIGTERM to the command's own process. XPK restarts on statuses from 127 (signals) by itself.
command=(
  xpk workload create --cluster="$cluster" --workload="$name" --tpu-type="$type" --num-slices="$slices"
  --docker-image="$image" --max-restarts=20 --restart-on-exit-codes=1 --termination-grace-period-seconds=300
  "${options[@]}" --command="exec bash launch/worker.sh tpu$(printf ' %q' "$@")"
)
if [[ $dry_run ]]; then
  on_host=${command[-1]#--command=}
  printf '%s ' "${command[@]:0:${#command[@]}-1}" "--command=${on_host@Q}"; echo
  exec bash launch/worker.sh --dry-run tpu "$@"
fi
exec "${command[@]}"
