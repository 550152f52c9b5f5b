#!/usr/bin/env bash
# npm run test:long: the random programs, many times as long, each file with hours to spare. Seeds are new each time, and
# printed: SEED=… replays a file. The power cuts have a run of their own: npm run test:crash.
#   npm run test:long                                             all of them
#   npm run test:long -- dist/test/unit/block/snapshots-model.test.js   only these
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
export IMAGEFS_LONG=1
export IMAGEFS_TEST_FILE_SECONDS="${IMAGEFS_TEST_FILE_SECONDS:-14400}"

if [ $# -eq 0 ]; then
  set -- \
    dist/test/unit/block/snapshots-model.test.js \
    dist/test/unit/formats/qcow2-check.test.js \
    dist/test/unit/shared/lists.test.js \
    dist/test/unit/shared/locks.test.js \
    dist/test/cluster/model.test.js \
    dist/test/cluster/faults.test.js \
    dist/test/cluster/hammer.test.js \
    dist/test/cluster/snapshot-hammer.test.js \
    dist/test/cluster/cluster-mates.test.js \
    dist/test/cluster/conformance.test.js \
    dist/test/cluster/qcow-conformance.test.js \
    dist/test/cluster/qcow2-conformance.test.js \
    dist/test/oracle/qcow1.test.js \
    dist/test/oracle/qcow2.test.js \
    dist/test/oracle/qcow2-create.test.js \
    dist/test/oracle/snapshots.test.js
fi
exec bash scripts/test.sh "$@"
