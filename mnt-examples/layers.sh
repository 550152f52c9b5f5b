#!/usr/bin/env bash
# Every layer of a backing chain as a disk of its own, beside the live disk that is being written.
#   layers.sh [IMAGE MOUNTPOINT]      lists the layers of an image; without arguments: makes a chain of three
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

image=${1:-$scratch/today.qed}
mountpoint=${2:-$scratch/mnt}
if [ $# -gt 0 ]; then
  mount_image -r "$image" "$mountpoint"
  run ls -ls "$mountpoint"/layers/*/disk
  unmount_image "$mountpoint"
  exit 0
fi

cd "$scratch"
run truncate -s 1M base.raw
printf 'base ' | dd of=base.raw conv=notrunc status=none
run "$IMAGEFS" create -q -f qed -b base.raw -F raw monday.qed
run "$IMAGEFS" create -q -f qed -b monday.qed -F qed today.qed

mount_image monday.qed "$mountpoint"
printf 'mon  ' | dd of="$mountpoint/disk" conv=notrunc status=none
unmount_image "$mountpoint"

mount_image today.qed "$mountpoint"
printf 'today' | dd of="$mountpoint/disk" conv=notrunc status=none
for layer in "$mountpoint"/layers/*; do
  printf '%-20s %s\n' "layers/$(basename "$layer")" "$(head -c 5 "$layer/disk")"
done
test "$(head -c 5 "$mountpoint/layers/0-today.qed/disk")" = today
test "$(head -c 5 "$mountpoint/layers/1-monday.qed/disk")" = 'mon  '
test "$(head -c 5 "$mountpoint/layers/2-base.raw/disk")" = 'base '
# Layers are read-only, and each map.json tells what that layer alone allocates.
if printf x 2>/dev/null >>"$mountpoint/layers/2-base.raw/disk"; then exit 1; fi
run cat "$mountpoint/layers/1-monday.qed/map.json"
unmount_image "$mountpoint"
echo "OK: three layers, each with its own content"
