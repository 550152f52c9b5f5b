#!/usr/bin/env bash
# Debian packages that imagefs needs beside Node.
#
#   scripts/install-deps.sh run    to mount and to run `npm run demo`
#   scripts/install-deps.sh test   what the test-suite needs as well
#
# Looks for the commands themselves and uses the network only when one is missing. As root it installs what is missing,
# otherwise it prints the command that would. Exit code: 0 nothing is missing (any more), 1 something is, 2 wrong usage.
set -uo pipefail
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# command:package, as Debian 12 calls them
run=(fusermount3:fuse3 mount:mount losetup:mount fstrim:util-linux mkfs.ext4:e2fsprogs debugfs:e2fsprogs)
test=("${run[@]}" qemu-img:qemu-utils qemu-io:qemu-utils sfdisk:fdisk partx:util-linux findmnt:util-linux
  setpriv:util-linux unshare:util-linux)

case "${1-}" in
  run) wanted=("${run[@]}") ;;
  test) wanted=("${test[@]}") ;;
  *)
    echo "usage: scripts/install-deps.sh run|test" >&2
    exit 2
    ;;
esac

commands=()
packages=()
look() {
  commands=()
  packages=()
  local entry
  for entry in "${wanted[@]}"; do
    command -v "${entry%%:*}" >/dev/null 2>&1 && continue
    commands+=("${entry%%:*}")
    case " ${packages[*]-} " in *" ${entry#*:} "*) ;; *) packages+=("${entry#*:}") ;; esac
  done
}

# fusermount3 looks up in /etc/mtab what an ordinary user may unmount; the smallest installations lack it.
if [ ! -e /etc/mtab ]; then
  if [ "$(id -u)" -eq 0 ]; then
    ln -s ../proc/self/mounts /etc/mtab
  else
    echo "There is no /etc/mtab, so only root can unmount. Make it with: sudo ln -s ../proc/self/mounts /etc/mtab" >&2
  fi
fi

look
[ "${#commands[@]}" -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null 2>&1; then
  echo "Missing commands: ${commands[*]}" >&2
  echo "This system has no apt-get: install what provides them (Debian calls the packages: ${packages[*]})" >&2
  exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "Missing commands: ${commands[*]}. Install them with:" >&2
  echo "  sudo apt-get install --no-install-recommends ${packages[*]}" >&2
  exit 1
fi

echo "Installing ${packages[*]} (for ${commands[*]})"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt_get() {
  # A lock held by another apt-get is waited for, two minutes at most; nobody is asked anything.
  apt-get -o DPkg::Lock::Timeout=120 -o Acquire::Retries=2 -q "$@" >"$log" 2>&1 </dev/null && return 0
  echo "apt-get $1 failed:" >&2
  tail -n 15 "$log" >&2
  return 1
}
apt_get update || echo "Trying with the package lists that are here" >&2
if ! apt_get install -y --no-install-recommends "${packages[@]}"; then
  echo "Cannot install ${packages[*]}: see above" >&2
  exit 1
fi
look
if [ "${#commands[@]}" -ne 0 ]; then
  echo "Still missing after the installation: ${commands[*]}" >&2
  exit 1
fi
