#!/usr/bin/env bash
# An fstab line for an image, tried with a table of its own: /etc/fstab stays as it is. Needs root. mount(8) finds the type
# through /sbin/mount.imagefs, which is linked for as long as this script runs; fstab.md says how to keep it.
#   fstab-entry.sh [IMAGE MOUNTPOINT]    without arguments: an image of its own, in a scratch directory
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_root "mount(8) and /sbin/mount.imagefs"

image=${1:-$scratch/vm.qed}
mountpoint=${2:-$scratch/mnt}
mkdir -p "$mountpoint"
[ $# -gt 0 ] || run "$IMAGEFS" create -q -f qed "$image" 16M

helper=/sbin/mount.imagefs
if [ ! -e "$helper" ]; then
  finally "rm -f '$helper'"
  run ln -sfn "$(dirname "$(readlink -f "$IMAGEFS")")/mount.imagefs" "$helper"
fi

echo "$image  $mountpoint  imagefs  ro,noauto,nofail,threads=4  0  0" >"$scratch/fstab"
run cat "$scratch/fstab"
finally "mountpoint -q '$mountpoint' && umount -l '$mountpoint'"
run mount --fstab "$scratch/fstab" "$mountpoint"
run findmnt --noheadings --output SOURCE,TARGET,FSTYPE "$mountpoint"
run ls "$mountpoint"
# umount(8) returns before the daemon has ended; imagefs umount waits for it.
run "$IMAGEFS" umount --wait "$mountpoint"
echo "OK: mounted by its fstab line"
