#!/usr/bin/env bash
# TPU VMs of one or more slices through Cloud TPU's queued resources. All in one, on a machine that stays up (in tmux):
#
#   bash launch/queued_resource.sh run t2i --zone=us-east5-a --type=v5p-128 --slices=2 --spot --nfs=10.0.0.2:/share -- \
#       --config=configs/t2i_3b.py --workdir=/shared/runs/t2i_3b
#
# `run` creates the resource, waits for it, installs the committed state of this repository and trains. When slices are
# preempted it deletes what is left, creates them anew and goes on from the latest checkpoint; after a crash it trains
# again, three times at most. It deletes the resource when training has finished, and leaves it (at its price) when that
# failed. Each part is a verb of its own, with the same options: create, install, train, delete; `stop` makes the
# training save and end. --dry-run prints what would be run.
#
# --type is as gcloud has it: v5litepod-N and v6e-N count chips, v5p-N counts cores, two per chip. --nfs is a Filestore
# share, mounted at /shared: checkpoints must outlive the VMs. gcloud needs a key: ssh-add ~/.ssh/google_compute_engine
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "queued_resource.sh: $*" >&2; exit 2; }

verb=${1:-}
[[ " run create install train stop delete " == *" $verb "* && $verb ]] ||
  fail "the verb is '$verb'; give run, create, install, train, stop or delete"
name=${2:-}
[[ $name =~ ^[a-z][a-z0-9-]*$ ]] || fail "the name is '$name'; give one of a-z, 0-9 and - after the verb"
shift 2
dry_run='' zone='' type='' slices=1 spot=() nfs=''
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --dry-run) dry_run=1 ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --spot) spot=(--spot) ;;
    --nfs=*) nfs=${1#*=} ;;
    *) fail "there is no option '$1'; the arguments of train come after --" ;;
  esac
  shift
done
[[ $zone ]] || fail "needs --zone=ZONE"
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices is '$slices'; give a number of slices, as in --slices=2"
if [[ $verb == run || $verb == create ]]; then
  case $type in
    v5litepod-*) image=v2-alpha-tpuv5-lite ;;
    v5p-*) image=v2-alpha-tpuv5 ;;
    v6e-*) image=v2-alpha-tpuv6e ;;
    *) fail "--type is '$type'; give v5litepod-N, v5p-N or v6e-N" ;;
  esac
fi
if [[ $verb == run || $verb == train ]]; then
  [[ " $* " == *" --config="* && " $* " == *" --workdir="* ]] ||
    fail "train needs --config=FILE and --workdir=DIR; write them after --"
fi
[[ $# == 0 ]] || shift

gcloud=(gcloud compute tpus queued-resources)
everywhere=(--zone="$zone" --node=all --worker=all --batch-size=all) # in batches the first would wait for the others

# Prints a command so that a shell could read it.
show() {
  local word
  for word; do
    if [[ $(printf %q "$word") == "$word" ]]; then printf '%s ' "$word"; else printf '%s ' "${word@Q}"; fi
  done
  echo
}

act() {
  if [[ $dry_run ]]; then show "$@"; else "$@"; fi
}

create() {
  local nodes=(--node-id="$name")
  [[ $slices == 1 ]] || nodes=(--node-count="$slices" --node-prefix="$name")
  act "${gcloud[@]}" create "$name" --zone="$zone" --accelerator-type="$type" --runtime-version="$image" \
    "${nodes[@]}" "${spot[@]}"
}

# The state of the resource, or ABSENT.
state() {
  "${gcloud[@]}" list --zone="$zone" --filter="name~/$name\$" --format='value(state.state)' | grep . || echo ABSENT
}

wait_until_active() {
  if [[ $dry_run ]]; then echo "# waits until $name is ACTIVE"; return; fi
  local now
  while now=$(state); [[ $now != ACTIVE ]]; do
    if [[ $now == FAILED ]]; then
      echo "the request failed; see why, then delete it: ${gcloud[*]} describe $name --zone=$zone" >&2
      exit 1
    fi
    [[ $now != SUSPENDED && $now != ABSENT ]] || return 1
    echo "$(date +%T) $name is $now"
    sleep 30
  done
}

# The TPU images have Python 3.10; uv brings a newer one.
install() {
  local archive=/tmp/mf_jax.$$.tar.gz steps status=0
  steps="mkdir -p mf_jax && tar -xzf mf_jax.tar.gz -C mf_jax && cd mf_jax && python3 -m pip install --quiet --user uv \
    && ~/.local/bin/uv venv --quiet --allow-existing --python=3.12 .venv \
    && ~/.local/bin/uv pip install --quiet --compile-bytecode --python=.venv --editable '.[tpu]'"
  [[ -z $nfs ]] || steps+=" && sudo apt-get install -y -q -o DPkg::Lock::Timeout=600 nfs-common \
    && sudo mkdir -p /shared && (mountpoint -q /shared || sudo mount -t nfs $(printf %q "$nfs") /shared)"
  {
    act git archive --format=tar.gz --output="$archive" HEAD &&
      act "${gcloud[@]}" scp "$archive" "$name:mf_jax.tar.gz" "${everywhere[@]}" &&
      act "${gcloud[@]}" ssh "$name" "${everywhere[@]}" --command="$steps"
  } || status=$?
  rm -f "$archive"
  return "$status"
}

train() {
  act "${gcloud[@]}" ssh "$name" "${everywhere[@]}" \
    --command="cd mf_jax && source .venv/bin/activate && bash launch/worker.sh tpu$(printf ' %q' "$@")"
}

stop() {
  act "${gcloud[@]}" ssh "$name" "${everywhere[@]}" --command="pkill -TERM -f 'bash launch/worker.sh'"
}

delete() {
  act "${gcloud[@]}" delete "$name" --zone="$zone" --force --quiet
}

# Whether the resource has stopped being ACTIVE, which shows a few minutes after a preemption.
preempted() {
  local _
  for _ in {1..10}; do
    [[ $(state) == ACTIVE ]] || return 0
    sleep 20
  done
  return 1
}

run() {
  local failures=0 status
  while true; do
    if [[ $dry_run || $(state) == ABSENT ]]; then create; fi
    status=0
    { wait_until_active && install && train "$@"; } || status=$?
    [[ $status != 0 ]] || break
    if preempted; then
      echo "$name is $(state): it is created anew" >&2
      [[ $(state) == ABSENT ]] || delete
    elif [[ $status == 2 || $status == 143 || $((failures += 1)) -gt 3 ]]; then
      echo "training ended with status $status; $name is left: look at it, then: $0 delete $name --zone=$zone" >&2
      exit "$status"
    fi
  done
  delete
}

"$verb" "$@"
