#!/usr/bin/env bash
# Partitions of a disk in an image as block devices, by a loop device over the mounted disk. Needs root.
#   loop-mount-partitions.sh [IMAGE MOUNTPOINT]   shows them, read-only; without arguments: makes an image with two
#                                                 partitions and works in one of them
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_root "loop devices and mounting file systems"

image=${1:-$scratch/vm.qed}
mountpoint=${2:-$scratch/mnt}

# attach OPTION...: a loop device over the disk in $loop, with its partitions; no longer there at the end.
attach() {
  run losetup --find --show --partscan "$@" "$mountpoint/disk" | tee "$scratch/loop"
  loop=$(tail -n 1 "$scratch/loop")
  finally detach
  # Kernels without partition support leave the table to partx.
  [ -e "${loop}p1" ] || run partx -a "$loop" || true
}
# Once: a moment later another program may have a device of that name.
detach() {
  [ -n "$loop" ] || return 0
  partx -d "$loop" 2>/dev/null || true
  run losetup -d "$loop"
  loop=
}

if [ $# -gt 0 ]; then
  mount_image -r "$image" "$mountpoint"
  attach --read-only
  run lsblk -o NAME,SIZE,FSTYPE,LABEL "$loop"
  detach
  unmount_image "$mountpoint"
  exit 0
fi

run "$IMAGEFS" create -q -f qed "$image" 64M
mount_image "$image" "$mountpoint"
echo '$ sfdisk mnt/disk   (two partitions)'
printf 'label: gpt\nsize=20M\nsize=20M\n' | sfdisk -q "$mountpoint/disk"
attach
run mkfs.ext4 -q -L guest "${loop}p1"
mkdir "$scratch/guest"
finally "umount '$scratch/guest'"
run mount "${loop}p1" "$scratch/guest"
echo 'written by the host' >"$scratch/guest/note"
run fstrim "$scratch/guest"
run umount "$scratch/guest"
detach
unmount_image "$mountpoint"

# Again, to see that it is in the image.
mount_image -r "$image" "$mountpoint"
attach --read-only
run mount -o ro "${loop}p1" "$scratch/guest"
run grep 'written by the host' "$scratch/guest/note"
run umount "$scratch/guest"
detach
unmount_image "$mountpoint"
run "$IMAGEFS" check "$image"
echo "OK: partition 1 of $image holds the note"
