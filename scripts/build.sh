#!/usr/bin/env bash
# Compiles src, test, scripts and mnt-examples into dist, and removes what dist holds of sources that are gone: a test
# that was deleted must not go on running. Then bundles the programs into dist/bundle.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

if [ -d dist ]; then
  find dist -name '*.js' -not -path 'dist/bundle/*' -print | while read -r output; do
    source="${output#dist/}"
    [ -e "${source%.js}.ts" ] || rm -f "$output" "$output.map" "${output%.js}.d.ts"
  done
fi
# The marker can survive without the files it speaks of: then tsc would write nothing.
[ -e dist/src/errors.js ] || rm -f dist/.tsbuildinfo
node_modules/.bin/tsc -p tsconfig.json && exec node scripts/bundle.js
