#!/usr/bin/env bash
# npm run demo: installs what is missing when it can, builds, and shows imagefs at work (mnt-examples/demo.ts).
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

bash scripts/install-deps.sh run
if [ "$(id -u)" -eq 0 ] && [ ! -e /dev/fuse ]; then
  modprobe fuse 2>/dev/null || mknod -m 0666 /dev/fuse c 10 229 || true
fi
if [ ! -x node_modules/.bin/tsc ]; then
  echo "The packages are not installed: run \"npm ci\" first" >&2
  exit 1
fi
bash scripts/build.sh
# ts-node would leave a cache in the temporary directory.
export DISABLE_V8_COMPILE_CACHE=1
exec node_modules/.bin/ts-node mnt-examples/demo.ts
