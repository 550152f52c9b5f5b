import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import * as koffi from 'koffi';
import { alignedBuffer, PAGE_BYTES } from '../../../src/system/aligned-buffer';
import { blockDeviceSize, discardRange, zeroRange } from '../../../src/system/block-device';
import { fallocate } from '../../../src/system/fallocate';
import { SystemError } from '../../../src/system/libc';
import { seekData, seekHole } from '../../../src/system/lseek';
import { memfdCreate } from '../../../src/system/memfd';
import { testLock, tryLock, unlock } from '../../../src/system/ofd-lock';

const KIB = 1024;

function temporaryFile(t: ExecutionContext, name = 'file'): { fd: number; file: string } {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'imagefs-'));
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }));
  const file = path.join(directory, name);
  const fd = fs.openSync(file, 'w+');
  t.teardown(() => fs.closeSync(fd));
  return { fd, file };
}

test('fallocate() punches, zeroes and reserves; size changes only as each mode says', (t) => {
  const { fd } = temporaryFile(t);
  const size = 256 * KIB;
  fs.writeSync(fd, Buffer.alloc(size, 7), 0, size, 0);
  const before = fs.fstatSync(fd).blocks;
  fallocate(fd, 'punch-hole', 64 * KIB, 64 * KIB);
  t.true(fs.fstatSync(fd).blocks < before);
  fallocate(fd, 'zero-range', 128 * KIB, 4 * KIB);
  const bytes = Buffer.alloc(size);
  fs.readSync(fd, bytes, 0, size, 0);
  t.true(bytes.subarray(64 * KIB, 132 * KIB).every((byte) => byte === 0));
  t.is(bytes[64 * KIB - 1], 7);
  t.is(bytes[132 * KIB], 7);
  fallocate(fd, 'allocate-keep-size', size, 64 * KIB);
  t.is(fs.fstatSync(fd).size, size);
  fallocate(fd, 'allocate', size, 64 * KIB);
  t.is(fs.fstatSync(fd).size, size + 64 * KIB);
});

test('fallocate() takes offsets above 4 GiB as they are', (t) => {
  const { fd } = temporaryFile(t);
  const far = 5 * 1024 * 1024 * KIB + 4096;
  fs.ftruncateSync(fd, far + 8192);
  fs.writeSync(fd, Buffer.alloc(8192, 5), 0, 8192, far);
  fallocate(fd, 'punch-hole', far + 4096, 4096);
  t.is(seekData(fd, 0), far);
  t.is(seekHole(fd, far), far + 4096);
});

test('SystemError has the shape of the errors of fs', (t) => {
  const error = t.throws(() => fallocate(99_999, 'allocate', 0, 1), { instanceOf: SystemError });
  t.is(error.code, 'EBADF');
  t.is(error.errno, -9);
  t.is(error.syscall, 'fallocate');
  t.is(error.message, 'EBADF: bad file descriptor, fallocate');
  t.is(new SystemError(95, 'fallocate', '/a').code, 'EOPNOTSUPP');
  t.is(new SystemError(2, 'mount', '/a').message, "ENOENT: no such file or directory, mount '/a'");
});

test('seekData() and seekHole() answer undefined where nothing follows', (t) => {
  const { fd } = temporaryFile(t);
  fs.ftruncateSync(fd, 256 * KIB);
  t.is(seekData(fd, 0), undefined);
  t.is(seekHole(fd, 0), 0);
  fs.writeSync(fd, Buffer.alloc(4096, 1), 0, 4096, 128 * KIB);
  t.is(seekData(fd, 0), 128 * KIB);
  t.is(seekHole(fd, 128 * KIB), 132 * KIB);
  t.is(seekData(fd, 132 * KIB), undefined);
  t.is(seekHole(fd, 256 * KIB), undefined);
  t.throws(() => seekData(99_999, 0), { code: 'EBADF' });
});

test('tryLock() excludes another description, testLock() tells, unlock() lets go', (t) => {
  const { fd, file } = temporaryFile(t);
  const other = fs.openSync(file, 'r+');
  t.teardown(() => fs.closeSync(other));
  t.true(tryLock(fd, 'read', 100, 1));
  t.true(tryLock(other, 'read', 100, 1));
  t.false(testLock(other, 'write', 100, 1));
  t.false(tryLock(other, 'write', 100, 1));
  t.true(tryLock(other, 'write', 101, 1));
  unlock(fd, 100, 1);
  t.true(testLock(other, 'write', 100, 1));
  t.true(tryLock(other, 'write', 100, 1));
  t.false(testLock(fd, 'read', 100, 1));
  t.true(testLock(other, 'write', 100, 1), 'its own lock does not stand in its way');
  t.throws(() => tryLock(99_999, 'read', 0, 1), { code: 'EBADF' });
});

test('memfdCreate() gives a file in memory that is closed on exec', (t) => {
  const fd = memfdCreate('imagefs test');
  t.teardown(() => fs.closeSync(fd));
  fs.writeSync(fd, 'text');
  t.is(fs.fstatSync(fd).size, 4);
  t.true(fs.readlinkSync(`/proc/self/fd/${fd}`).includes('imagefs test'));
  const flags = /flags:\s*(\d+)/.exec(fs.readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'));
  t.is(Number.parseInt(flags![1]!, 8) & 0o2000000, 0o2000000);
});

test('alignedBuffer() puts the byte asked for at the start of a page', (t) => {
  for (const at of [0, 16, 80, 4095, 4096]) {
    const buffer = alignedBuffer(8192, at);
    t.is(buffer.length, 8192);
    t.is(Number((koffi.address(buffer) + BigInt(at)) % BigInt(PAGE_BYTES)), 0);
  }
});

test('blockDeviceSize(), zeroRange() and discardRange() on a loop device', (t) => {
  const { file, fd } = temporaryFile(t, 'disk');
  const size = 1024 * KIB + 512;
  fs.writeSync(fd, Buffer.alloc(size, 9), 0, size, 0);
  t.throws(() => blockDeviceSize(fd), { code: 'ENOTTY' });
  let device: string;
  try {
    device = execFileSync('losetup', ['-f', '--show', file], { encoding: 'utf8', stdio: 'pipe' }).trim();
  } catch (error) {
    t.log(`no loop device here: ${(error as Error).message}`);
    t.not(process.env.IMAGEFS_REQUIRE_ALL, '1');
    return;
  }
  t.teardown(() => execFileSync('losetup', ['-d', device]));
  const loop = fs.openSync(device, 'r+');
  try {
    t.is(blockDeviceSize(loop), size);
    zeroRange(loop, 4096, 8192);
    discardRange(loop, 512 * KIB, 64 * KIB);
    fs.fsyncSync(loop);
    const bytes = Buffer.alloc(16 * KIB);
    fs.readSync(loop, bytes, 0, bytes.length, 0);
    t.is(bytes[4095], 9);
    t.true(bytes.subarray(4096, 12288).every((byte) => byte === 0));
    t.is(bytes[12288], 9);
    t.is(seekHole(fd, 512 * KIB), 512 * KIB);
  } finally {
    fs.closeSync(loop);
  }
});
