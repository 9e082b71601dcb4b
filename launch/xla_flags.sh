# shellcheck shell=bash
# The XLA flags of each platform in the environment, and the only place that sets any. All scripts do:
#   source launch/xla_flags.sh PLATFORM
#
# PLATFORM is tpu, gpu or cpu. What LIBTPU_INIT_ARGS or XLA_FLAGS hold already comes behind ours, and wins.
#
# For TPUs there is none: libtpu chooses by the chip, and the options that help the train step are passed with each
# compilation, so that `compile` predicts what `train` runs (mf_jax/training/compiler_options.py). The flags that are
# handed around for training (async collective fusion, latency hiding, overlap of collectives, async all-gather,
# data-parallel all-reduce) are defaults on v5e: libtpu 0.0.42 compiles the same program with and without them, as the
# tests show. On v6e they change the program, and nobody has measured here whether for the better.

_tpu_flags=()
_gpu_flags=(
  --xla_gpu_enable_latency_hiding_scheduler=true # starts collectives early, so that they run beside compute
)

case ${1:-} in
  tpu) export LIBTPU_INIT_ARGS="${_tpu_flags[*]}${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}" ;;
  gpu)
    export XLA_FLAGS="${_gpu_flags[*]}${XLA_FLAGS:+ $XLA_FLAGS}"
    export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}" # jax takes 0.75 of a GPU by default
    ;;
  cpu) ;;
  *)
    echo "xla_flags.sh: the platform is '${1:-}'; give tpu, gpu or cpu" >&2
    exit 2
    ;;
esac

# Prints the variables above as `NAME=VALUE` lines.
xla_flags_show() {
  local name
  for name in LIBTPU_INIT_ARGS XLA_FLAGS XLA_PYTHON_CLIENT_MEM_FRACTION; do
    [[ -z ${!name:-} ]] || echo "$name='${!name}'"
  done
}
