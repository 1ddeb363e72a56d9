#!/usr/bin/env bash
# Predict in a container: no network, bundle and scans read-only, no privilege; for Docker rootless and Podman.
#
#   predict.sh BUNDLE SCANS OUT     every entry of the folder SCANS
set -euo pipefail
if [ $# -ne 3 ]; then
  echo "wanted BUNDLE SCANS OUT, found $# arguments" >&2
  exit 2
fi
bundle=$(realpath "$1") scans=$(realpath "$2") out=$3
mkdir -p "$out"
out=$(realpath "$out")
shopt -s nullglob
inside=()
for scan in "$scans"/*; do
  inside+=("/in/$(basename "$scan")")
done
# rootless: the user in the container must be able to write OUT; --userns=keep-id is Podman's way
exec ${ENGINE:-docker} run --rm \
  --network none --read-only --tmpfs /tmp:rw,noexec,nosuid,size=2g \
  --cap-drop ALL --security-opt no-new-privileges --pids-limit 256 --memory "${MEMORY:-8g}" \
  --user "${RUN_AS:-0:0}" \
  --volume "$bundle":/bundle:ro --volume "$scans":/in:ro --volume "$out":/out:rw \
  "${IMAGE:-medmeta}" predict /bundle "${inside[@]}" --out /out --resume --json
