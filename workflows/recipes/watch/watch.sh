#!/usr/bin/env bash
# Predict whatever arrives in a folder; for cron or the systemd timer beside it.
#
#   watch.sh BUNDLE INBOX OUTBOX
#
# An entry of INBOX is a scan: a NIfTI file, a zip, or the folder of one DICOM study. One that nobody has written to for
# SETTLE seconds (60) is taken; its results appear in OUTBOX when they are whole, with a line of JSON in
# OUTBOX/results.jsonl. Then the scan is moved to INBOX/.done, or to INBOX/.failed where it could not be predicted; where
# one of its name is there, a number is added. Two runs at once: the second leaves. A run that was stopped in the middle
# is gone on with by the next. A case is called as its scan: one that is called as an earlier, different one is not
# predicted but moved to .failed, and its line says so; the earlier result stays.
set -euo pipefail
if [ $# -ne 3 ]; then
  echo "wanted BUNDLE INBOX OUTBOX, found $# arguments" >&2
  exit 2
fi
bundle=$1 inbox=$2 outbox=$3
settle=${SETTLE:-60}
formats=${FORMATS:-nifti}
if [ ! -d "$inbox" ]; then
  echo "wanted a folder to watch, found none" >&2
  exit 2
fi
mkdir -p "$outbox" "$inbox/.done" "$inbox/.failed"
exec 9>"$outbox/.lock"
flock --nonblock 9 || exit 0

# nothing is written over, and nothing moved into a folder of the same name
put_away() {
  local to=$2/${1##*/} number=1
  while [ -e "$to" ] || [ -L "$to" ]; do
    to=$2/${1##*/}.$number
    number=$((number + 1))
  done
  mv -T -- "$1" "$to"
}

failed=0
shopt -s nullglob
for scan in "$inbox"/*; do
  # the newest file below it, in seconds since 1970
  newest=$(find "$scan" -printf '%T@\n' | sort -n | tail -1 | cut -d. -f1)
  if [ $(($(date +%s) - newest)) -lt "$settle" ]; then
    continue # still arriving
  fi
  code=0
  medmeta predict "$bundle" "$scan" --out "$outbox" --formats "$formats" --resume --json \
    >>"$outbox/results.jsonl" || code=$?
  case $code in
    0) put_away "$scan" "$inbox/.done" ;;
    1) failed=1 && put_away "$scan" "$inbox/.failed" ;;
    *) exit "$code" ;; # refused (the bundle, say) or stopped: nothing is wrong with the scan
  esac
done
exit $failed
