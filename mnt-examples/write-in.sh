#!/usr/bin/env bash
# Writes a raw disk into an image. A disk of fixed size ignores truncation, so plain cp and dd leave its size alone.
#   write-in.sh [RAWFILE IMAGE MOUNTPOINT]    without arguments: files of its own, in a scratch directory
# The image must exist and be at least as large as the raw file.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

raw=${1:-$scratch/disk.raw}
image=${2:-$scratch/vm.qed}
mountpoint=${3:-$scratch/mnt}
if [ $# -eq 0 ]; then
  run dd if=/dev/urandom of="$raw" bs=1M count=3 status=none
  run truncate -s 8M "$raw"
  run "$IMAGEFS" create -q -f qed "$image" 8M
fi

mount_image "$image" "$mountpoint"
# The whole disk; cp looks for holes and writes data only.
run cp "$raw" "$mountpoint/disk"
# A part of it: 4 KiB at 1 MiB, on stable storage when dd returns.
run dd if="$raw" of="$mountpoint/disk" bs=4K skip=256 seek=256 count=1 conv=notrunc,fsync status=none
run cmp -n "$(stat -c %s "$raw")" "$raw" "$mountpoint/disk"
unmount_image "$mountpoint"

run "$IMAGEFS" check "$image"
echo "OK: the disk of $image begins with $raw"
