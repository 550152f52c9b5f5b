#!/usr/bin/env bash
# A mount by an ordinary user: fusermount3 mounts, nobody but that user gets in, not even root.
#   unprivileged.sh      as root it becomes the user nobody for the mount
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

as_user=()
if [ "$(id -u)" -eq 0 ]; then
  as_user=(setpriv --reuid=65534 --regid=65534 --clear-groups env "HOME=$scratch/own")
  mkdir -m 0700 "$scratch/own"
  chown 65534:65534 "$scratch/own"
  chmod 0711 "$scratch"
  # Where the project itself lies in a folder that others may not enter: lend it through a bind mount.
  if ! "${as_user[@]}" test -x "$IMAGEFS"; then
    mkdir "$scratch/project"
    mount --bind "$project" "$scratch/project"
    finally "umount '$scratch/project'"
    IMAGEFS=$scratch/project/bin/imagefs
  fi
else
  mkdir -m 0700 "$scratch/own"
fi
mnt=$scratch/own/mnt

finally "${as_user[*]} '$IMAGEFS' umount --lazy '$mnt'"
run "${as_user[@]}" mkdir "$mnt"
run "${as_user[@]}" "$IMAGEFS" create -q -f qed "$scratch/own/vm.qed" 16M
run "${as_user[@]}" "$IMAGEFS" mount "$scratch/own/vm.qed" "$mnt"
run "${as_user[@]}" dd if=/dev/zero of="$mnt/disk" bs=64K count=4 conv=notrunc,fsync status=none
run "${as_user[@]}" ls -ls "$mnt"
if [ "$(id -u)" -eq 0 ]; then
  if ls "$mnt" 2>/dev/null; then
    echo "root got in, although allow_other was not given" >&2
    exit 1
  fi
  echo "root: permission denied, as it should be; -o allow_other would let others in"
fi
run "${as_user[@]}" "$IMAGEFS" umount --wait "$mnt"
run "${as_user[@]}" "$IMAGEFS" check "$scratch/own/vm.qed"
echo "OK: mounted and unmounted without root"
