# Sourced by the examples: finds imagefs, prints each command before it runs, makes a scratch directory, and cleans up
# whatever happens. IMAGEFS names another imagefs, TMPDIR another place for the scratch directory.
set -euo pipefail
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
if [ -z "${IMAGEFS-}" ] && [ -x "$project/bin/imagefs" ]; then IMAGEFS=$project/bin/imagefs; fi
IMAGEFS=${IMAGEFS:-imagefs}

scratch=$(mktemp -d "${TMPDIR:-/tmp}/imagefs-example-XXXXXX")
undo=()

# Remembers a command for the end; the last one remembered runs first.
finally() { undo=("$*" ${undo[@]+"${undo[@]}"}); }

clean_up() {
  local code=$? command
  trap - EXIT
  set +e
  for command in ${undo[@]+"${undo[@]}"}; do eval "$command" >/dev/null 2>&1; done
  # A delete must never reach through a mount that is still there.
  if grep -qF " $scratch/" /proc/self/mounts; then
    echo "Something is still mounted in $scratch: left as it is" >&2
  else
    rm -rf "$scratch"
  fi
  exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

# $ command, and what it says
run() {
  printf '$'
  local word
  for word in "$@"; do
    [ "$word" = "$IMAGEFS" ] && word=imagefs
    case "$word" in *[!A-Za-z0-9_./,:=@%+-]* | '') printf " '%s'" "$word" ;; *) printf ' %s' "$word" ;; esac
  done
  printf '\n'
  "$@"
}

# mount_image OPTION... IMAGE MOUNTPOINT: mounts, and unmounts at the end if that was not done before.
mount_image() {
  local mountpoint=${*: -1}
  mkdir -p "$mountpoint"
  run "$IMAGEFS" mount "$@"
  finally "mountpoint -q '$mountpoint' && { '$IMAGEFS' umount '$mountpoint' || '$IMAGEFS' umount --lazy '$mountpoint'; }"
}

unmount_image() { run "$IMAGEFS" umount --wait "$1"; }

need_root() {
  [ "$(id -u)" -eq 0 ] && return 0
  echo "$0 needs root: $1" >&2
  exit 77
}
