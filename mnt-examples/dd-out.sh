#!/usr/bin/env bash
# Copies the disk of an image out as a raw file, and compares it with what qemu-img makes of the image where that is
# installed.
#   dd-out.sh [IMAGE MOUNTPOINT RAWFILE]      without arguments: an image of its own, in a scratch directory
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

image=${1:-$scratch/vm.qed}
mountpoint=${2:-$scratch/mnt}
raw=${3:-$scratch/copy.raw}
if [ $# -eq 0 ]; then
  run "$IMAGEFS" create -q -f qed "$image" 16M
  mount_image "$image" "$mountpoint"
  run dd if=/dev/urandom of="$mountpoint/disk" bs=64K count=20 seek=7 conv=notrunc status=none
  unmount_image "$mountpoint"
fi

mount_image -r "$image" "$mountpoint"
run dd if="$mountpoint/disk" of="$raw" bs=1M conv=sparse status=none
run cmp "$mountpoint/disk" "$raw"
unmount_image "$mountpoint"
run ls -s --block-size=1K "$image" "$raw"

if command -v qemu-img >/dev/null; then
  run qemu-img compare "$image" "$raw" -F raw
else
  echo "qemu-img is not installed: not compared with it"
fi
echo "OK: $raw is the disk of $image"
