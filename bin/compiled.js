// Where the commands of this folder find their code. A clone has none at first: `npm ci` runs no scripts (.npmrc says
// why), so the first command compiles it, once. A package from a registry brings its dist along.
const fs = require('node:fs');
const path = require('node:path');

const top = path.join(__dirname, '..');

/** @param {string} name below dist/bundle, e.g. `cli/main.js` */
exports.load = (name) => {
  const file = path.join(top, 'dist', 'bundle', name);
  if (!fs.existsSync(file)) compile();
  return require(file);
};

function compile() {
  if (!fs.existsSync(path.join(top, 'node_modules', 'esbuild'))) {
    stop(`its packages are not installed: run "npm ci" in "${top}"`);
  }
  process.stderr.write('imagefs: compiling, this once\n');
  try {
    require('../scripts/bundle.js').bundle();
  } catch (error) {
    stop(`it could not be compiled: ${error.message}; run "npm run build" in "${top}", as the owner of that directory`);
  }
}

/** @param {string} why */
function stop(why) {
  process.stderr.write(`imagefs: Cannot start: ${why}\n`);
  process.exit(1);
}
