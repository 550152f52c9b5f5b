// Where the commands of this folder find their code. A clone has none at first: `npm ci` runs no scripts (.npmrc says
// why), so the first command compiles it, once. A package from a registry brings its dist along.
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const top = path.join(__dirname, '..');
const dist = path.join(top, 'dist');
const compiler = path.join(top, 'node_modules', 'typescript', 'bin', 'tsc');

/** @param {string} name below dist/src, e.g. `cli/main.js` */
exports.load = (name) => {
  const file = path.join(dist, 'src', name);
  if (!isCompiled(file)) compile();
  return require(file);
};

// The compiler writes its own notes last: without them another command is still at it, or was interrupted.
function isCompiled(file) {
  const isClone = fs.existsSync(path.join(top, 'tsconfig.json'));
  return fs.existsSync(file) && (!isClone || fs.existsSync(path.join(dist, '.tsbuildinfo')));
}

function compile() {
  if (!fs.existsSync(compiler)) stop(`its packages are not installed: run "npm ci" in "${top}"`);
  process.stderr.write('imagefs: compiling, this once\n');
  const { status, stdout } = spawnSync(process.execPath, [compiler, '-p', path.join(top, 'tsconfig.json')], {
    encoding: 'utf8',
  });
  if (status === 0) return;
  process.stderr.write(stdout);
  stop(`it could not be compiled: run "npm run build" in "${top}", as the owner of that directory`);
}

function stop(why) {
  process.stderr.write(`imagefs: Cannot start: ${why}\n`);
  process.exit(1);
}
