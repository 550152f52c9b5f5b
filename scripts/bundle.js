// Makes dist/bundle: one file for each program and each kind of thread, from the sources, together with what V8 makes of it. Node
// finds and reads one file faster than 150, and each thread of a mount does that for itself (docs/adr/0015-bundles.md). No types
// are checked here: that is tsc's part of the build.
const fs = require('node:fs');
const Module = require('node:module');
const path = require('node:path');
const vm = require('node:vm');
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
    // program.js reads a byte as a character.
    charset: 'ascii',
    // They find their native halves beside their own files.
    external: ['koffi', 'fuse-native'],
    logLevel: 'warning',
    write: false,
  });
  const program = fs.readFileSync(path.join(__dirname, 'program.js'));
  for (const name of ENTRIES) {
    const output = path.join(OUTPUT, name);
    const { text } = outputFiles.find((file) => file.path === `${output}.js`);
    fs.mkdirSync(path.dirname(output), { recursive: true });
    replace(`${output}.bundle`, withCode(text));
    replace(`${output}.js`, program);
  }
};

/**
 * What V8 has made by the time a program begins: functions that are not called until then are not in it, but where they begin
 * and end is. With all of them a mount is no faster and needs 17 MiB more.
 *
 * @param {string} text of a program
 * @returns {Buffer} as `program.js` reads it
 */
function withCode(text) {
  const wrapped = Module.wrap(text);
  const code = new vm.Script(wrapped).createCachedData();
  const length = Buffer.alloc(4);
  length.writeUInt32LE(code.length);
  return Buffer.concat([Buffer.from(wrapped, 'latin1'), code, length]);
}

/** Whole or not at all: other commands may be starting. */
function replace(file, content) {
  const unfinished = `${file}.${process.pid}`;
  fs.writeFileSync(unfinished, content);
  fs.renameSync(unfinished, file);
}

if (require.main === module) exports.bundle();
