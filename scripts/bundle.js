// Makes dist/bundle: one file for each program and each kind of thread, from the sources. Node finds, reads and compiles one
// file faster than 150, and each thread of a mount does that for itself (docs/adr/0015-bundles.md). No types are checked
// here: that is tsc's part of the build.
const fs = require('node:fs');
const path = require('node:path');
const { buildSync } = require('esbuild');

const TOP = path.join(__dirname, '..');
const OUTPUT = path.join(TOP, 'dist', 'bundle');
/** Programs last: as soon as one is there, a command may start what it needs. */
const ENTRIES = [
  'system/umount-worker',
  'daemon/worker',
  'daemon/flusher',
  'daemon/main',
  'cli/mount-helper',
  'cli/main',
];

exports.bundle = () => {
  const { outputFiles } = buildSync({
    absWorkingDir: TOP,
    entryPoints: ENTRIES.map((name) => `src/${name}.ts`),
    outbase: 'src',
    outdir: OUTPUT,
    bundle: true,
    platform: 'node',
    target: 'node20',
    // They find their native halves beside their own files.
    external: ['koffi', 'fuse-native'],
    logLevel: 'warning',
    write: false,
  });
  const fileOf = (name) => path.join(OUTPUT, `${name}.js`);
  const contents = new Map(outputFiles.map((file) => [file.path, file.contents]));
  for (const name of ENTRIES) {
    const file = fileOf(name);
    // Whole or not at all: other commands may be starting.
    const unfinished = `${file}.${process.pid}`;
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(unfinished, contents.get(file));
    fs.renameSync(unfinished, file);
  }
};

if (require.main === module) exports.bundle();
