/** What goes through addresses must do what Node's fs does, and never touch a byte outside of the buffer. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { addressOf, alignedBuffer } from '../../../src/system/aligned-buffer';
import { readAt, readDescriptor, readIfReady, writeAt, writeDescriptor } from '../../../src/system/transfer';
import { temporaryDirectory } from '../../helpers/images';

const LENGTH = 10_000;

function fileOf(t: ExecutionContext, content: Uint8Array): number {
  const file = path.join(temporaryDirectory(t), 'file');
  fs.writeFileSync(file, content);
  const fd = fs.openSync(file, 'r+');
  t.teardown(() => fs.closeSync(fd));
  return fd;
}

const pattern = Buffer.from(Array.from({ length: LENGTH }, (_, at) => (at * 7 + (at >> 8)) % 251));

test('readAt() and writeAt() move the same bytes for memory with a known address and for any other', (t) => {
  const fd = fileOf(t, pattern);
  const aligned = alignedBuffer(LENGTH, 16);
  t.not(addressOf(aligned), undefined);
  t.is(addressOf(Buffer.alloc(LENGTH)), undefined);
  t.is(addressOf(aligned.subarray(1)), undefined, 'a part has another address');
  for (const memory of [aligned, Buffer.alloc(LENGTH)]) {
    memory.fill(0xee);
    t.is(readAt(fd, memory, 100, 5000, 3000), 5000);
    t.true(memory.subarray(100, 5100).equals(pattern.subarray(3000, 8000)));
    t.true(memory.subarray(0, 100).every((byte) => byte === 0xee));
    t.true(memory.subarray(5100).every((byte) => byte === 0xee));
    t.is(readAt(fd, memory, 0, 5000, 9000), 1000, 'the end of the file cuts it');
    t.is(readAt(fd, memory, 0, 5000, LENGTH), 0);
    memory.fill(0x33);
    t.is(writeAt(fd, memory, 7, 500, 2 ** 32 + 5), 500, 'offsets have more than 32 bits');
    const back = Buffer.alloc(502);
    t.is(fs.readSync(fd, back, 0, 502, 2 ** 32 + 4), 501);
    t.deepEqual([back[0], back[1], back[500], back[501]], [0, 0x33, 0x33, 0]);
    fs.ftruncateSync(fd, LENGTH);
  }
});

test('a range outside of the buffer is refused before the kernel sees its address', (t) => {
  const fd = fileOf(t, pattern);
  const memory = alignedBuffer(4096, 0);
  for (const [at, length] of [
    [0, 4097],
    [1, 4096],
    [-1, 10],
    [4000, -1],
    [Number.NaN, 1],
  ]) {
    t.throws(() => readAt(fd, memory, at, length, 0), { instanceOf: RangeError }, `${length} at ${at}`);
    t.throws(() => writeAt(fd, memory, at, length, 0), { instanceOf: RangeError }, `${length} at ${at}`);
  }
  t.throws(() => writeDescriptor(fd, memory, 4097), { instanceOf: RangeError });
  t.is(fs.fstatSync(fd).size, LENGTH);
});

test('failures carry code and errno as those of fs do', (t) => {
  const memory = alignedBuffer(4096, 0);
  const expected = { code: 'EBADF', errno: -9, syscall: 'read' };
  t.like(
    t.throws(() => readAt(-1, memory, 0, 10, 0)),
    expected,
  );
  t.like(
    t.throws(() => readDescriptor(-1, memory)),
    expected,
  );
  t.like(
    t.throws(() => writeAt(-1, memory, 0, 10, 0)),
    { ...expected, syscall: 'write' },
  );
  t.like(
    t.throws(() => writeDescriptor(-1, memory, 10)),
    { ...expected, syscall: 'write' },
  );
  t.true(readIfReady(-1, memory) < 0, 'not even an exception');
});

test('readDescriptor() and writeDescriptor() go on where the descriptor stands', (t) => {
  const fd = fileOf(t, pattern);
  t.true(readIfReady(fd, Buffer.alloc(10)) < 0, 'memory without an address is left to the blocking read');
  const file = fs.readlinkSync(`/proc/self/fd/${fd}`);
  for (const memory of [alignedBuffer(6000, 0), Buffer.alloc(6000)]) {
    const own = fs.openSync(file, 'r+');
    t.teardown(() => fs.closeSync(own));
    t.is(readDescriptor(own, memory), 6000);
    t.is(readDescriptor(own, memory), 4000);
    t.true(memory.subarray(0, 4000).equals(pattern.subarray(6000)));
    writeDescriptor(own, memory, 3);
    t.is(fs.fstatSync(fd).size, LENGTH + 3);
    fs.ftruncateSync(fd, LENGTH);
  }
});
