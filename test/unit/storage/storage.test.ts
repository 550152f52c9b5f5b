/** Storages: one contract for files, block devices and memory; the storages that tests put in front of them. */
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { BlockError } from '../../../src/errors';
import { attachStorage } from '../../../src/storage/attach';
import { FaultyStorage } from '../../../src/storage/faulty';
import { FileStorage } from '../../../src/storage/file';
import { MemoryStorage } from '../../../src/storage/memory';
import { RecordingStorage } from '../../../src/storage/recording';
import type { Storage } from '../../../src/storage/storage';
import { KIB, MIB } from '../../../src/units';
import { cannotRun, temporaryDirectory } from '../../helpers/images';
import { firstDifference } from '../../helpers/model';
import { FileState } from '../../helpers/power-cut';
import { patternBytes, Random, seedOf } from '../../helpers/random';

const CAPACITY = 4 * MIB;

function fileStorage(t: ExecutionContext): FileStorage {
  const storage = FileStorage.create(path.join(temporaryDirectory(t), 'file'));
  t.teardown(() => storage.close());
  return storage;
}

function read(storage: Storage, offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length).fill(0xee);
  storage.read(offset, bytes, 0, length);
  return bytes;
}

/** The contract, on an empty storage that can hold CAPACITY bytes. */
function contract(t: ExecutionContext, storage: Storage): void {
  t.is(storage.size(), 0);
  const data = patternBytes(0, 10_000, 1);
  storage.write(5000, data, 0, data.length, 'data-write');
  t.is(storage.size(), 15_000);
  t.deepEqual(read(storage, 5000, 10_000), data);
  t.true(
    read(storage, 0, 5000).every((byte) => byte === 0),
    'the gap reads zero',
  );

  const around = new Uint8Array(20).fill(9);
  t.is(storage.read(14_990, around, 5, 15), 10, 'ten bytes lie inside');
  t.deepEqual(around, Uint8Array.from([9, 9, 9, 9, 9, ...data.subarray(9990), 0, 0, 0, 0, 0]));
  t.is(storage.read(MIB, around, 0, 20), 0);
  t.true(around.every((byte) => byte === 0));

  storage.write(7, data, 100, 3, 'data-write');
  t.deepEqual(read(storage, 6, 5), Uint8Array.from([0, data[100], data[101], data[102], 0]));

  storage.punch(6001, 4999, 'data-write');
  t.deepEqual(read(storage, 5000, 1001), data.subarray(0, 1001));
  t.true(read(storage, 6001, 4999).every((byte) => byte === 0));
  t.deepEqual(read(storage, 11_000, 4000), data.subarray(6000));
  storage.punch(14_000, MIB, 'data-write');
  storage.punch(2 * MIB, 10, 'data-write');
  t.is(storage.size(), 15_000, 'punching never changes the size');
  t.true(read(storage, 14_000, 1000).every((byte) => byte === 0));

  storage.allocate(10_000, 90_000, 'data-write');
  t.is(storage.size(), 100_000);
  t.deepEqual(read(storage, 11_000, 3000), data.subarray(6000, 9000), 'allocating keeps the content');
  t.true(read(storage, 15_000, 85_000).every((byte) => byte === 0));
  storage.allocate(0, 50, 'data-write');
  t.is(storage.size(), 100_000);

  storage.truncate(12_000, 'cluster-grow');
  storage.truncate(20_000, 'cluster-grow');
  t.is(storage.size(), 20_000);
  t.true(
    read(storage, 12_000, 8000).every((byte) => byte === 0),
    'what was cut off does not come back',
  );
  t.notThrows(() => storage.sync('flush-data'));

  storage.truncate(0, 'cluster-grow');
  storage.truncate(MIB, 'cluster-grow');
  storage.write(256 * KIB, data, 0, 4096, 'data-write');
  t.is(storage.nextData(0), 256 * KIB);
  t.is(storage.nextHole(256 * KIB), 260 * KIB);
  t.is(storage.nextData(256 * KIB + 100), 256 * KIB + 100);
  t.is(storage.nextData(260 * KIB), MIB, 'no data: the size');
  t.is(storage.nextHole(100), 100);
  t.is(storage.nextData(MIB), MIB);
  t.true(storage.allocatedBytes() >= 4096 && storage.allocatedBytes() < MIB);

  const other = attachStorage(structuredClone(storage.describe()));
  t.deepEqual(read(other, 256 * KIB, 4096), data.subarray(0, 4096));
  other.write(0, data, 0, 10, 'data-write');
  t.deepEqual(read(storage, 0, 10), data.subarray(0, 10));
}

test('MemoryStorage keeps the contract of a storage', (t) => contract(t, MemoryStorage.create(CAPACITY)));
test('FileStorage keeps the contract of a storage', (t) => contract(t, fileStorage(t)));
test('FaultyStorage without rules keeps the contract', (t) =>
  contract(t, new FaultyStorage(MemoryStorage.create(CAPACITY))));
test('RecordingStorage keeps the contract', (t) => contract(t, new RecordingStorage(fileStorage(t))));

test('MemoryStorage, FileStorage and the replayed record agree after random operations', (t) => {
  const random = new Random(seedOf(t, 41));
  const memory = MemoryStorage.create(CAPACITY);
  const file = new RecordingStorage(fileStorage(t));
  for (let step = 0; step < 400; step++) {
    const offset = random.below(MIB);
    const length = random.between(1, 20_000);
    const bytes = patternBytes(offset, length, step);
    const what = random.below(10);
    const size = random.below(2 * MIB);
    for (const storage of [memory, file]) {
      if (what < 5) storage.write(offset, bytes, 0, length, 'data-write');
      else if (what < 7) storage.punch(offset, length, 'data-write');
      else if (what < 8) storage.allocate(offset, length, 'data-write');
      else if (what < 9) storage.truncate(size, 'cluster-grow');
    }
  }
  t.is(memory.size(), file.size());
  t.is(firstDifference(read(memory, 0, memory.size()), read(file, 0, file.size())), -1);
  const replayed = new FileState(CAPACITY);
  for (const operation of file.log) replayed.apply(operation);
  t.is(replayed.length, file.size());
  t.is(firstDifference(replayed.bytes.subarray(0, replayed.length), read(file, 0, file.size())), -1);
  t.true(file.log.length > 200);
});

test('MemoryStorage is full at its capacity, as a disk is', (t) => {
  const storage = MemoryStorage.create(1000);
  storage.write(0, new Uint8Array(1000), 0, 1000, 'data-write');
  for (const attempt of [
    () => storage.write(999, new Uint8Array(2), 0, 2, 'data-write'),
    () => storage.allocate(0, 1001, 'data-write'),
    () => storage.truncate(1001, 'cluster-grow'),
  ]) {
    const error = t.throws(attempt, { instanceOf: BlockError });
    t.is(error?.code, 'NO_SPACE');
    t.is(error?.errnoName, 'ENOSPC');
  }
  t.is(storage.size(), 1000);
});

test('FileStorage.punch() gives the space back to the host', (t) => {
  const storage = fileStorage(t);
  storage.write(0, Buffer.alloc(MIB, 1), 0, MIB, 'data-write');
  const before = storage.allocatedBytes();
  storage.punch(0, MIB, 'cluster-free');
  t.true(before - storage.allocatedBytes() >= 1000 * KIB);
  t.is(storage.size(), MIB);
});

test('FileStorage.open() names the file and the reason', (t) => {
  const directory = temporaryDirectory(t);
  const code = (file: string, readOnly: boolean) =>
    t.throws(() => FileStorage.open(file, { readOnly }), { instanceOf: BlockError })?.code;
  t.is(code(path.join(directory, 'none'), true), 'NOT_FOUND');
  t.is(code(path.join(directory, 'none', 'x'), true), 'NOT_FOUND');
  t.is(code(directory, true), 'INVALID_FORMAT');
  t.is(code('/dev/null', false), 'INVALID_FORMAT');
  const fifo = path.join(directory, 'fifo');
  execFileSync('mkfifo', [fifo]);
  t.is(code(fifo, true), 'INVALID_FORMAT', 'and does not wait for a writer');
  const error = t.throws(() => FileStorage.open(path.join(directory, 'none'), { readOnly: true }));
  t.regex(error?.message ?? '', /^Cannot open ".*none": No such file or directory$/);
});

test('FileStorage read-only: writes fail and say so', (t) => {
  const file = path.join(temporaryDirectory(t), 'file');
  fs.writeFileSync(file, Buffer.alloc(4096, 1));
  const storage = FileStorage.open(file, { readOnly: true });
  t.teardown(() => storage.close());
  t.true(storage.readOnly);
  for (const attempt of [
    () => storage.write(0, new Uint8Array(1), 0, 1, 'data-write'),
    () => storage.punch(0, 10, 'data-write'),
    () => storage.truncate(0, 'cluster-grow'),
    () => storage.allocate(0, 8192, 'data-write'),
  ]) {
    t.throws(attempt, { instanceOf: BlockError });
  }
  t.deepEqual(fs.readFileSync(file), Buffer.alloc(4096, 1));
});

test('FileStorage on a block device: capacity, punches of any alignment, no growing', (t) => {
  if (process.getuid?.() !== 0) return cannotRun(t, 'loop devices need root');
  const directory = temporaryDirectory(t);
  const file = path.join(directory, 'disk');
  fs.writeFileSync(file, patternBytes(0, MIB, 3));
  let device: string;
  try {
    device = execFileSync('losetup', ['--find', '--show', file], { encoding: 'utf8' }).trim();
  } catch (error) {
    return cannotRun(t, `losetup: ${error}`);
  }
  t.teardown(() => execFileSync('losetup', ['--detach', device]));
  const storage = FileStorage.open(device, { readOnly: false });
  t.teardown(() => storage.close());
  t.is(storage.size(), MIB);
  t.is(storage.allocatedBytes(), MIB);
  t.is(storage.nextData(1000), 1000);
  t.is(storage.nextHole(1000), MIB);
  const expected = patternBytes(0, MIB, 3);
  for (const [offset, length] of [
    [0, 4096],
    [8192 + 512, 1024],
    [20_001, 700],
    [30_000, 200_000],
    [MIB - 5, 5],
    [MIB - 512, 4096],
  ]) {
    storage.punch(offset, length, 'data-write');
    expected.fill(0, offset, Math.min(MIB, offset + length));
  }
  storage.write(333_333, patternBytes(0, 1000, 4), 0, 1000, 'data-write');
  expected.set(patternBytes(0, 1000, 4), 333_333);
  storage.sync('flush-data');
  t.is(firstDifference(read(storage, 0, MIB), expected), -1);
  t.is(t.throws(() => storage.truncate(2 * MIB, 'cluster-grow'), { instanceOf: BlockError })?.code, 'NO_SPACE');
  t.notThrows(() => storage.truncate(MIB, 'cluster-grow'));
  t.throws(() => storage.write(MIB - 10, new Uint8Array(20), 0, 20, 'data-write'), { instanceOf: BlockError });
});

test('FaultyStorage fails the named event, after so many, once or until healed', (t) => {
  const storage = new FaultyStorage(MemoryStorage.create(CAPACITY));
  const write = () => storage.write(0, new Uint8Array(1), 0, 1, 'l2-update');
  storage.arm({ event: 'l2-update', errno: 'ENOSPC', after: 2, once: true });
  storage.write(0, new Uint8Array(1), 0, 1, 'data-write');
  write();
  write();
  const error = t.throws(write, { instanceOf: BlockError });
  t.is(error?.code, 'NO_SPACE');
  t.is(error?.errnoName, 'ENOSPC');
  t.notThrows(write);
  storage.arm({ event: 'l2-update', errno: 'EIO', after: 0, once: false });
  t.is(t.throws(write, { instanceOf: BlockError })?.code, 'IO');
  t.throws(write);
  storage.heal();
  t.notThrows(write);
  t.is(storage.fired, 3);
  t.is(storage.seen.get('l2-update'), 7);
  storage.arm({ event: 'read', errno: 'EIO', after: 0, once: true });
  t.throws(() => storage.read(0, new Uint8Array(1), 0, 1));
  t.notThrows(() => storage.read(0, new Uint8Array(1), 0, 1));
});

test('RecordingStorage keeps copies, in order, of what succeeded', (t) => {
  const faulty = new FaultyStorage(MemoryStorage.create(CAPACITY));
  const storage = new RecordingStorage(faulty);
  const bytes = Uint8Array.from([1, 2, 3, 4]);
  storage.write(10, bytes, 1, 2, 'l2-update');
  bytes.fill(9);
  storage.punch(3, 4, 'cluster-free');
  faulty.arm({ event: 'flush-l2', errno: 'EIO', after: 0, once: true });
  t.throws(() => storage.sync('flush-l2'));
  storage.sync('flush-l2');
  storage.truncate(7, 'cluster-grow');
  storage.allocate(1, 2, 'l2-allocate');
  t.deepEqual(storage.log, [
    { kind: 'write', event: 'l2-update', offset: 10, bytes: Uint8Array.from([2, 3]) },
    { kind: 'punch', event: 'cluster-free', offset: 3, length: 4 },
    { kind: 'sync', event: 'flush-l2' },
    { kind: 'truncate', event: 'cluster-grow', size: 7 },
    { kind: 'allocate', event: 'l2-allocate', offset: 1, length: 2 },
  ]);
});
