#!/usr/bin/env bash
# Lets systemd itself check the unit, with the path of this imagefs put in. Without systemd-analyze it says so and checks
# only that every command of the unit exists as it is written.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

unit="$(dirname "${BASH_SOURCE[0]}")/imagefs@.service"
sed "s|/usr/local/bin/imagefs|$(readlink -f "$(command -v "$IMAGEFS")")|" "$unit" >"$scratch/imagefs@.service"
if command -v systemd-analyze >/dev/null; then
  SYSTEMD_LOG_LEVEL=warning run systemd-analyze verify --man=no "$scratch/imagefs@.service"
else
  echo "systemd-analyze is not installed: only the commands are looked at"
fi
grep -oE '^Exec[A-Za-z]+=-?[^ ]+' "$scratch/imagefs@.service" | sed 's/.*=-\{0,1\}//' | sort -u | while read -r command; do
  run test -x "$command"
done
# The subcommands and options that the unit uses are those of this version.
run "$IMAGEFS" umount --help | grep -q -- '--wait'
run "$IMAGEFS" mount --help | grep -q -- '-o OPTION'
echo "OK: the unit is valid"
