#!/usr/bin/env bash
# npm test: everything from a fresh clone to the totals. The last line is `N passed, N failed`.
#   npm test                                   the whole suite
#   npm test -- dist/test/unit/units.test.js   only these files (compiled names)
# IMAGEFS_REQUIRE_ALL=1 makes a test that cannot run here (no /dev/fuse, no loop devices, no qemu-img) fail.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
bin=node_modules/.bin

give_up() {
  echo "$1" >&2
  echo "0 passed, 1 failed"
  exit 1
}

failed=()
if ! bash scripts/install-deps.sh test; then
  if [ "${IMAGEFS_REQUIRE_ALL-}" = 1 ]; then
    failed+=(--failed "scripts/install-deps.sh test: packages are missing, and IMAGEFS_REQUIRE_ALL is set")
  else
    echo "Going on without them: the tests that need them say so and are left out" >&2
  fi
fi

if [ "$(id -u)" -eq 0 ]; then
  # As distributions set it up: anybody may open the device, fusermount3 decides who may mount.
  [ -e /dev/fuse ] || modprobe fuse 2>/dev/null || mknod /dev/fuse c 10 229 2>/dev/null
  [ -e /dev/fuse ] && chmod 0666 /dev/fuse
else
  echo "Not root: tests with loop devices and mounts by mount(2) are left out" >&2
fi

[ -x "$bin/tsc" ] || give_up "The packages are not installed: run \"npm ci\" first"

bash scripts/build.sh || give_up "The build failed: see above"
"$bin/biome" check --colors=off --error-on-warnings . || failed+=(--failed "biome check: see above")

node dist/scripts/run-tests.js ${failed[@]+"${failed[@]}"} "$@"
