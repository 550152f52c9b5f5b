// How the programs in dist/bundle are stored and run. NAME.bundle has all parts in one file, so that they always belong together:
//
//     text of the program | what V8 made of it when it was built | the Node it was built with | lengths of both, 4 bytes each
//
// With what V8 made it need not read the text from end to end; for another Node only the text is used (docs/adr/0015-bundles.md).
const fs = require('node:fs');
const { wrap } = require('node:module');
const vm = require('node:vm');

const LENGTHS_BYTES = 8;

/**
 * V8 takes code by its own version number alone, and crashes when it is another V8 of the same number: Node 20.19 and 20.20 have such,
 * and distributions repair Node without giving it another version. Asked is the binary that runs: what has its path may be another by now,
 * or gone, while a daemon starts one more worker.
 *
 * @returns {string | undefined} undefined without /proc
 */
function thisNode() {
  const binary = fs.statSync('/proc/self/exe', { throwIfNoEntry: false });
  return binary && `${process.version} ${process.arch} ${binary.size} ${binary.mtimeMs}`;
}

/**
 * @param {string} program its text
 * @returns {Buffer} content of NAME.bundle
 */
exports.pack = (program) => {
  const text = wrap(program);
  // A byte a character: that is how V8 has it fastest, and how `run` reads it.
  if (/[^\0-\x7f]/.test(text)) throw new Error('a program has characters that are not ASCII');
  const code = new vm.Script(text).createCachedData();
  const node = Buffer.from(thisNode() ?? 'unknown');
  const lengths = Buffer.alloc(LENGTHS_BYTES);
  lengths.writeUInt32LE(code.length, 0);
  lengths.writeUInt32LE(node.length, 4);
  return Buffer.concat([Buffer.from(text), code, node, lengths]);
};

/** Parts of what `pack` made; `code` is undefined when another Node made it. */
function unpack(bytes) {
  const nodeEnd = bytes.length - LENGTHS_BYTES;
  const codeEnd = nodeEnd - bytes.readUInt32LE(nodeEnd + 4);
  const textEnd = codeEnd - bytes.readUInt32LE(nodeEnd);
  const fits = bytes.toString('latin1', codeEnd, nodeEnd) === thisNode();
  return { text: bytes.toString('latin1', 0, textEnd), code: fits ? bytes.subarray(textEnd, codeEnd) : undefined };
}
exports.unpack = unpack;

/**
 * Runs NAME.bundle as the module NAME.js.
 *
 * @param {NodeModule} module of NAME.js
 * @param {NodeRequire} require of NAME.js
 */
exports.run = (module, require) => {
  const filename = module.filename.replace(/\.js$/, '.bundle');
  const { text, code } = unpack(fs.readFileSync(filename));
  const script = new vm.Script(text, { filename, cachedData: code });
  script.runInThisContext()(module.exports, require, module, module.filename, module.path);
};
