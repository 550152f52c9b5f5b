/** What `npm run build` makes of the programs: V8 takes what it compiled then, and does without where it does not fit. */
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { Script } from 'node:vm';
import test from 'ava';

const PROJECT = path.resolve(__dirname, '../../..');
const BUNDLE = path.join(PROJECT, 'dist/bundle');
const { pack, unpack } = require(path.join(PROJECT, 'scripts/program.js')) as {
  pack(program: string): Buffer;
  unpack(bytes: Buffer): { text: string; code: Buffer | undefined };
};
const PROGRAMS = fs
  .readdirSync(BUNDLE, { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.bundle'))
  .sort();

test('there is one for each command and each kind of thread', (t) => {
  t.deepEqual(PROGRAMS, [
    'cli/main.bundle',
    'cli/mount-helper.bundle',
    'daemon/flusher.bundle',
    'daemon/main.bundle',
    'daemon/worker.bundle',
    'system/umount-worker.bundle',
  ]);
});

for (const name of PROGRAMS) {
  test(`${name}: V8 takes the code that it made`, (t) => {
    const { text, code } = unpack(fs.readFileSync(path.join(BUNDLE, name)));
    t.is(new Script(text, { cachedData: code }).cachedDataRejected, false);
  });
}

test('code of another Node is never shown to V8, which would crash with it', (t) => {
  const packed = pack('module.exports = 1;');
  t.true(Buffer.isBuffer(unpack(packed).code));
  const other = Buffer.from(packed.toString('latin1').replace(`${process.version} `, 'v20.0.0 '), 'latin1');
  other.writeUInt32LE(packed.readUInt32LE(packed.length - 4) + other.length - packed.length, other.length - 4);
  t.deepEqual(unpack(other), { text: unpack(packed).text, code: undefined });
});

test('a daemon whose Node was removed from the disk still starts workers', (t) => {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'bundle-'));
  t.teardown(() => fs.rmSync(directory, { recursive: true }));
  const node = path.join(directory, 'node');
  fs.copyFileSync(process.execPath, node);
  const script = `
    const { pack, unpack } = require(process.argv[1]);
    const packed = pack('module.exports = 1;');
    fs.unlinkSync(process.execPath);
    console.log(unpack(packed).code !== undefined);`;
  const args = ['-e', script, path.join(PROJECT, 'scripts/program.js')];
  t.is(execFileSync(node, args, { encoding: 'utf8' }), 'true\n');
});

test('with other flags than when it was built V8 compiles the text', (t) => {
  const args = ['--no-use-osr', path.join(PROJECT, 'bin/imagefs'), '--version'];
  t.regex(execFileSync(process.execPath, args, { encoding: 'utf8' }), /^imagefs \d/);
});

test('a text that is not ASCII is refused when it is built', (t) => {
  t.throws(() => pack('const sign = "µ";'), { message: /not ASCII/ });
});
