// Makes dist/bundle: one file for each program and each kind of thread, from the sources, together with what V8 makes of it. Node
// finds and reads one file faster than 150, and each thread of a mount does that for itself (docs/adr/0015-bundles.md). No types
// are checked here: that is tsc's part of the build.
const fs = require('node:fs');
const path = require('node:path');
const { buildSync } = require('esbuild');
const { pack } = require('./program.js');

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
    charset: 'ascii',
    // They find their native halves beside their own files.
    external: ['koffi', 'fuse-native'],
    logLevel: 'warning',
    write: false,
  });
  fs.mkdirSync(OUTPUT, { recursive: true });
  replace(path.join(OUTPUT, 'program.js'), fs.readFileSync(path.join(__dirname, 'program.js')));
  for (const name of ENTRIES) {
    const output = path.join(OUTPUT, name);
    const { text } = outputFiles.find((file) => file.path === `${output}.js`);
    fs.mkdirSync(path.dirname(output), { recursive: true });
    replace(`${output}.bundle`, pack(text));
    replace(`${output}.js`, "require('../program.js').run(module, require);\n");
  }
};

/** Whole or not at all: other commands may be starting. */
function replace(file, content) {
  const unfinished = `${file}.${process.pid}`;
  fs.writeFileSync(unfinished, content);
  fs.renameSync(unfinished, file);
}

if (require.main === module) exports.bundle();
