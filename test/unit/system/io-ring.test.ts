/** A ring does what read(2) and write(2) do, in order where one depends on the other, and says how each came out. */
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import { constants } from 'node:os';
import * as path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { addressOf, alignedBuffer } from '../../../src/system/aligned-buffer';
import { IoRing } from '../../../src/system/io-ring';
import { SystemError } from '../../../src/system/libc';
import { temporaryDirectory } from '../../helpers/images';
import { openRing } from '../../helpers/rings';

const { EBADF, ECANCELED } = constants.errno;
const LENGTH = 100_000;
const pattern = Buffer.from(Array.from({ length: LENGTH }, (_, at) => (at * 7 + (at >> 8)) % 251));

interface Fixture {
  ring: IoRing;
  source: number;
  target: number;
  targetPath: string;
  memory: Buffer;
  address: number;
}

function fixture(t: ExecutionContext, entries = 8): Fixture | undefined {
  const ring = openRing(t, entries);
  if (ring === undefined) return undefined;
  const directory = temporaryDirectory(t);
  fs.writeFileSync(path.join(directory, 'source'), pattern);
  const source = fs.openSync(path.join(directory, 'source'), 'r');
  const targetPath = path.join(directory, 'target');
  const target = fs.openSync(targetPath, 'a');
  t.teardown(() => {
    ring.close();
    fs.closeSync(source);
    fs.closeSync(target);
  });
  const memory = alignedBuffer(LENGTH, 0);
  const address = addressOf(memory);
  if (address === undefined) throw new Error('no address');
  return { ring, source, target, targetPath, memory, address };
}

test('several reads come out where they were told to, in the order of the pushes', (t) => {
  const made = fixture(t);
  if (made === undefined) return;
  const { ring, source, memory, address } = made;
  memory.fill(0xee);
  const ranges = [
    [5000, 300],
    [0, 1],
    [LENGTH - 100, 100],
    [40_000, 7000],
  ];
  ranges.forEach(
    ([offset, length], index) => void ring.pushRead(source, address + index * 10_000, length, offset, false),
  );
  ring.run();
  t.deepEqual([...ring.results.subarray(0, 4)], [300, 1, 100, 7000]);
  for (const [index, [offset, length]] of ranges.entries()) {
    const at = index * 10_000;
    t.true(memory.subarray(at, at + length).equals(pattern.subarray(offset, offset + length)));
    t.true(
      memory.subarray(at + length, at + 10_000).every((byte) => byte === 0xee),
      'and nothing else is touched',
    );
  }
});

test('a linked write is made with what was read, and not at all when the read came out short or failed', (t) => {
  const made = fixture(t);
  if (made === undefined) return;
  const { ring, source, target, targetPath, memory, address } = made;
  memory.fill(0x20);
  const pair = (fd: number, at: number, length: number, offset: number) => {
    ring.pushRead(fd, address + at, length, offset, true);
    ring.pushWrite(target, address + at, length);
  };
  pair(source, 0, 500, 1000);
  pair(source, 1000, 500, LENGTH - 499);
  pair(-1, 2000, 500, 0);
  pair(source, 3000, 500, 2000);
  ring.run();
  t.deepEqual([...ring.results], [500, 500, 499, -ECANCELED, -EBADF, -ECANCELED, 500, 500]);
  const written = fs.readFileSync(targetPath);
  t.is(written.length, 1000);
  // Chains of their own: which of the two comes first is not said.
  const [one, two] = [pattern.subarray(1000, 1500), pattern.subarray(2000, 2500)];
  t.true(written.equals(Buffer.concat([one, two])) || written.equals(Buffer.concat([two, one])));
});

test('offsets have more than 32 bits', (t) => {
  const made = fixture(t);
  if (made === undefined) return;
  const { ring, memory, address } = made;
  const file = path.join(temporaryDirectory(t), 'far');
  const fd = fs.openSync(file, 'w+');
  t.teardown(() => fs.closeSync(fd));
  const far = 5 * 2 ** 32 + 123;
  fs.writeSync(fd, 'far away', far);
  ring.pushRead(fd, address, 8, far, false);
  ring.run();
  t.is(memory.toString('latin1', 0, 8), 'far away');
});

test('the ring goes round again and again, with as many operations as it has entries and with fewer', (t) => {
  const made = fixture(t);
  if (made === undefined) return;
  const { ring, source, memory, address } = made;
  let operations = 0;
  for (let round = 0; round < 3000; round++) {
    const count = 1 + (round % 8);
    const length = 100 + round;
    memory.fill(0, 0, count);
    for (let index = 0; index < count; index++)
      ring.pushRead(source, address + index, length - index, round * 7 + index, false);
    ring.run();
    for (let index = 0; index < count; index++, operations++) {
      if (ring.results[index] !== length - index) t.fail(`round ${round}, ${index}: ${ring.results[index]}`);
    }
    if (memory[0] !== pattern[round * 7]) t.fail(`round ${round}: ${memory[0]}`);
  }
  t.is(operations, (3000 / 8) * 36);
});

test('more operations than entries are refused, and nothing of what was pushed is lost', (t) => {
  const made = fixture(t, 2);
  if (made === undefined) return;
  const { ring, source, address } = made;
  for (const length of [10, 20]) ring.pushRead(source, address, length, 0, false);
  t.throws(() => ring.pushRead(source, address, 30, 0, false), { instanceOf: RangeError });
  ring.run();
  t.deepEqual([...ring.results], [10, 20]);
  ring.run();
});

test('a kernel that has none for us says why, and nothing is left open', (t) => {
  const before = fs.readdirSync('/proc/self/fd').length;
  // Far more entries than a ring may have.
  t.throws(() => IoRing.open(1 << 30), { instanceOf: SystemError, message: /io_uring_setup/ });
  t.is(fs.readdirSync('/proc/self/fd').length, before);
});

test('the end of a process does not wait for its ring', (t) => {
  const made = fixture(t);
  if (made === undefined) return;
  const module = require.resolve('../../../src/system/io-ring');
  const code = `require(${JSON.stringify(module)}).IoRing.open(8); console.log('open')`;
  t.is(execFileSync(process.execPath, ['-e', code], { encoding: 'utf8', timeout: 20_000 }), 'open\n');
});
