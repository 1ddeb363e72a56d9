#!/usr/bin/env bash
# Meta-train on all GPUs of a machine, or on PROCESSES processes; goes on where an earlier run was stopped.
#
#   train.sh COHORT RUN [further options of medmeta train]
#
# Several machines: NODES=2 RANK=0 MASTER=first-machine train.sh … on the first, RANK=1 on the second.
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "wanted COHORT RUN, found $# arguments" >&2
  exit 2
fi
cohort=$1 run=$2
shift 2
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}
where=(--standalone)
if [ "${NODES:-1}" -gt 1 ]; then
  where=(--nnodes "$NODES" --node_rank "${RANK:?}" --rdzv_backend c10d --rdzv_endpoint "${MASTER:?}:29500")
fi
resume=()
if [ -f "$run/config.json" ]; then
  resume=(--resume)
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec torchrun "${where[@]}" --nproc_per_node "$processes" \
  -m medmeta train "$cohort" --out "$run" --meta-batch $((2 * processes * ${NODES:-1})) "${resume[@]}" "$@"
