/** What `npm run build` makes of the programs: V8 takes what it compiled then, and does without where it does not fit. */
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { Script } from 'node:vm';
import test from 'ava';

const PROJECT = path.resolve(__dirname, '../../..');
const PROGRAMS = fs
  .readdirSync(path.join(PROJECT, 'dist/bundle'), { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.bundle'));

function parts(name: string): { text: string; code: Buffer } {
  const bytes = fs.readFileSync(path.join(PROJECT, 'dist/bundle', name));
  const codeEnd = bytes.length - 4;
  const textEnd = codeEnd - bytes.readUInt32LE(codeEnd);
  return { text: bytes.toString('latin1', 0, textEnd), code: bytes.subarray(textEnd, codeEnd) };
}

test('there is one for each command and each kind of thread', (t) => {
  t.deepEqual(PROGRAMS.sort(), [
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
    const { text, code } = parts(name);
    t.is(new Script(text, { cachedData: code }).cachedDataRejected, false);
  });
}

test('a V8 that refuses the code compiles the text', (t) => {
  const { text, code } = parts('cli/main.bundle');
  const other = Buffer.from(code);
  other.fill(0, 0, 16);
  t.is(new Script(text, { cachedData: other }).cachedDataRejected, true);
  // Other flags than when it was built: refused as well.
  const args = ['--no-use-osr', path.join(PROJECT, 'bin/imagefs'), '--version'];
  t.regex(execFileSync(process.execPath, args, { encoding: 'utf8' }), /^imagefs \d/);
});
