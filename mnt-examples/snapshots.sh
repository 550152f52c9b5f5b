#!/usr/bin/env bash
# A snapshot before an update, the old state beside the live disk, and the way back.
#   snapshots.sh [IMAGE MOUNTPOINT]   lists the snapshots of an image; without arguments: makes an image
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

image=${1:-$scratch/vm.qcow2}
mountpoint=${2:-$scratch/mnt}
if [ $# -gt 0 ]; then
  mount_image -r "$image" "$mountpoint"
  run ls -l "$mountpoint/snapshots"
  unmount_image "$mountpoint"
  exit 0
fi

cd "$scratch"
run "$IMAGEFS" create -q -f qcow2 vm.qcow2 16M
mount_image vm.qcow2 "$mountpoint"
printf 'version=1\n' | dd of="$mountpoint/disk" conv=notrunc status=none

run mkdir "$mountpoint/snapshots/before-update"
printf 'version=2\n' | dd of="$mountpoint/disk" conv=notrunc status=none

run head -c 10 "$mountpoint/disk"
run head -c 10 "$mountpoint/snapshots/before-update/disk"
test "$(head -c 9 "$mountpoint/snapshots/before-update/disk")" = version=1
# Which parts differ? Both are plain files.
cmp "$mountpoint/disk" "$mountpoint/snapshots/before-update/disk" || echo "they differ"

# The update was no good: back to what was before, without unmounting.
run "$IMAGEFS" snapshot -a before-update vm.qcow2
test "$(head -c 9 "$mountpoint/disk")" = version=1
run mv "$mountpoint/snapshots/before-update" "$mountpoint/snapshots/known-good"
run "$IMAGEFS" snapshot -l vm.qcow2
run rmdir "$mountpoint/snapshots/known-good"
test -z "$(ls "$mountpoint/snapshots")"
unmount_image "$mountpoint"
run "$IMAGEFS" check vm.qcow2
echo "OK: taken, read beside the live disk, reverted to, renamed, deleted"
