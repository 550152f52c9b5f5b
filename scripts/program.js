// What each program in dist/bundle is: it runs NAME.bundle beside itself. That file has three parts, in one file so that they always
// belong together:
//
//     text of the program | what V8 made of it when it was built | length of the latter, 4 bytes, little endian
//
// V8 takes what it made, without which it would first read the text from end to end; another version of
// V8 refuses it and reads the text (docs/adr/0015-bundles.md).
const fs = require('node:fs');
const vm = require('node:vm');

const file = __filename.replace(/\.js$/, '.bundle');
const bytes = fs.readFileSync(file);
const codeEnd = bytes.length - 4;
const textEnd = codeEnd - bytes.readUInt32LE(codeEnd);
// Only ASCII: that is how esbuild writes.
const text = bytes.latin1Slice(0, textEnd);
const script = new vm.Script(text, { filename: file, cachedData: bytes.subarray(textEnd, codeEnd) });
script.runInThisContext()(exports, require, module, __filename, __dirname);
