import test from 'ava';
import { BlockError } from '../../../src/errors';
import type { RepairMode } from '../../../src/formats/format';
import { checkQcow2 } from '../../../src/formats/qcow2/check';
import { ClusterCounts } from '../../../src/formats/qcow2/cluster-counts';
import { qcow2Format } from '../../../src/formats/qcow2/format';
import { readQcow2Header } from '../../../src/formats/qcow2/header';
import { FaultyStorage } from '../../../src/storage/faulty';
import { MemoryStorage } from '../../../src/storage/memory';
import { RecordingStorage } from '../../../src/storage/recording';
import type { Storage } from '../../../src/storage/storage';
import { eachCut, FileState } from '../../helpers/power-cut';
import { Qcow2Bytes } from '../../helpers/qcow2-bytes';
import { LONG, Random, seedOf } from '../../helpers/random';
import { addSnapshots, CAPACITY, guestClusters, loaded, memoryImage } from './qcow2-memory';

function check(storage: Storage, repair: RepairMode = 'none') {
  return checkQcow2(readQcow2Header(storage), storage, repair);
}

interface Case {
  name: string;
  damage(image: Qcow2Bytes): void;
  /** Guest clusters whose content goes. */
  lost: number[];
}

const COPIED = 1n << 63n;

const CASES: Case[] = [
  { name: 'all counts lost', damage: (i) => i.bytes.fill(0, i.block(), i.block() + 512), lost: [] },
  { name: 'refcount table lost', damage: (i) => i.bytes.fill(0, i.refcountTable, i.refcountTable + 512), lost: [] },
  { name: 'refcount block not aligned', damage: (i) => i.or64(i.refcountTable, 8n), lost: [] },
  {
    name: 'counts wrong both ways, flags wrong, two entries for one cluster',
    damage: (i) => {
      for (let cluster = 6; cluster < 40; cluster++) i.setCount(cluster, cluster % 4);
      for (let index = 10; index < 30; index += 3) i.xor64(i.entryAt(index), COPIED);
      i.set64(i.entryAt(40), i.u64(i.entryAt(41)));
    },
    lost: [40],
  },
  {
    name: 'a snapshot table that says too much',
    damage: (i) => {
      i.bytes = addSnapshots(i.bytes, 3);
      i.set32(60, 5);
      i.or64(i.snapshots + 64, 8n);
    },
    lost: [],
  },
  {
    name: 'entries that point nowhere',
    damage: (i) => {
      i.set64(i.entryAt(3), Qcow2Bytes.copied(1 << 30));
      i.or64(i.entryAt(4), 1n << 58n);
      i.set64(i.entryAt(7), 0);
      i.set64(i.l1 + 8, Qcow2Bytes.copied(1 << 30));
    },
    lost: [3, 7, ...Array.from({ length: 64 }, (_, index) => 64 + index)],
  },
];

test('checkQcow2() repairs whatever moment a power cut picks, and never loses what was there', (t) => {
  const random = new Random(seedOf(t, 11));
  let cuts = 0;
  for (const { name, damage, lost } of CASES) {
    const image = new Qcow2Bytes(memoryImage());
    const before = guestClusters(image.bytes);
    damage(image);
    const gone = new Set(lost);
    const kept = (bytes: Buffer) => guestClusters(bytes).filter((_, index) => !gone.has(index));
    const wanted = before.filter((_, index) => !gone.has(index));
    const log = [] as RecordingStorage['log'];
    const start = new FileState(CAPACITY);
    start.bytes.set(image.bytes);
    start.length = image.bytes.length;
    check(new RecordingStorage(loaded(image.bytes), log), 'all');
    t.true(log.length >= 2, name);
    eachCut([start], log, { random, subsets: LONG ? 20 : 3 }, ({ states: [state], given }) => {
      const cut = Buffer.from(state.bytes.subarray(0, state.length));
      t.deepEqual(kept(cut), wanted, `${name}: cut at ${given} of ${log.length}`);
      const storage = loaded(cut);
      const result = check(storage, 'all');
      t.is(result.corruptions + result.leaks + result.checkErrors, 0, `${name}: cut at ${given} of ${log.length}`);
      const repaired = Buffer.alloc(storage.size());
      storage.read(0, repaired, 0, repaired.length);
      t.deepEqual(kept(repaired), wanted, `${name}: repaired after a cut at ${given} of ${log.length}`);
      cuts++;
      return true;
    });
  }
  t.true(cuts > 50, `${cuts}`);
});

test('checkQcow2() clears the dirty and the corrupt bit only when all is well', (t) => {
  const image = new Qcow2Bytes(memoryImage());
  image.set64(72, 3);
  image.setCount(9, 0);
  const storage = loaded(image.bytes);
  t.is(check(storage, 'leaks').corruptions, 2);
  t.true(readQcow2Header(storage).dirty);
  t.true(readQcow2Header(storage).corrupt);
  t.is(check(storage, 'all').corruptions, 0);
  t.false(readQcow2Header(storage).dirty);
  t.false(readQcow2Header(storage).corrupt);
});

test('checkQcow2() reads a table that a thousand snapshots share once', (t) => {
  const image = new Qcow2Bytes(addSnapshots(memoryImage(), 1000));
  const storage = loaded(image.bytes);
  const table = image.l2();
  let reads = 0;
  const read = storage.read.bind(storage);
  storage.read = (offset, target, at, length) => {
    if (offset === table) reads++;
    return read(offset, target, at, length);
  };
  // All counts are too low by a thousand. The walk and the copied flags read the table, and nobody else does.
  t.true(check(storage).corruptions > 190);
  t.is(reads, 2);
  t.is(check(storage, 'all').corruptions, 0);
  t.is(check(storage).leaks, 0);
});

test('checkQcow2() says what it cannot read, and repairs nothing then', (t) => {
  const image = new Qcow2Bytes(memoryImage());
  image.setCount(9, 5);
  const below = loaded(image.bytes);
  let failed = 0;
  for (let after = 1; after < 40; after++) {
    const storage = new FaultyStorage(below);
    const header = readQcow2Header(storage);
    storage.arm({ event: 'read', errno: 'EIO', after, once: true });
    let errors: number;
    try {
      errors = checkQcow2(header, storage, 'none').checkErrors;
    } catch (error) {
      t.true(error instanceof BlockError);
      errors = 1;
    }
    if (storage.fired === 0) break;
    failed++;
    t.true(errors > 0, `read ${after}`);
  }
  t.true(failed > 3, `${failed}`);
  const storage = new FaultyStorage(below);
  const header = readQcow2Header(storage);
  storage.arm({ event: 'read', errno: 'EIO', after: 3, once: false });
  t.true(checkQcow2(header, storage, 'all').checkErrors > 0);
  storage.heal();
  t.is(check(storage).leaks, 1, 'nothing was changed');
});

test('checkQcow2() refuses to repair what is open read-only', (t) => {
  const { buffer } = loaded(memoryImage()).describe() as { buffer: SharedArrayBuffer };
  const storage = new MemoryStorage({ kind: 'memory', buffer, path: 'a.qcow2', readOnly: true });
  const error = t.throws(() => check(storage, 'leaks'), { instanceOf: BlockError });
  t.is(error.code, 'READ_ONLY');
});

test('checkQcow2() counts references that are too many for one bit', (t) => {
  const image = new Qcow2Bytes(memoryImage({ refcountBits: 1 }));
  image.set64(image.entryAt(1), image.u64(image.entryAt(0)));
  image.set64(image.entryAt(2), image.u64(image.entryAt(0)));
  const result = check(loaded(image.bytes));
  t.is(result.corruptions, 2);
  t.is(result.leaks, 2);
  t.true(result.messages.some((line) => line.includes('overflow cluster')));
});

test('checkQcow2() bounds the messages and the L1 tables that it reads', (t) => {
  const image = new Qcow2Bytes(memoryImage());
  for (let index = 0; index < 60; index++) image.or64(image.entryAt(index), 1n << 57n);
  for (let cluster = 6; cluster < 100; cluster++) image.setCount(cluster, 9);
  const { messages } = check(loaded(image.bytes));
  t.is(messages.length, 101);
  t.regex(messages[100], /^\.\.\. and [0-9]+ more inconsistencies$/);

  // Each names the 32 MiB from its L1 table on: that is more than the file many times over.
  const huge = new Qcow2Bytes(addSnapshots(memoryImage(), 2000));
  let at = huge.snapshots;
  for (let index = 0; index < 2000; index++, at += 64) huge.set32(at + 8, 4 * 1024 * 1024);
  const storage = loaded(huge.bytes);
  storage.size = () => 64 * 1024 * 1024;
  const error = t.throws(() => check(storage), { instanceOf: BlockError });
  t.is(error.code, 'CORRUPT_IMAGE');
});

test('qcow2Format.prepareWrite() repairs an image that was not closed cleanly', (t) => {
  const image = new Qcow2Bytes(memoryImage());
  const before = guestClusters(image.bytes);
  image.set64(72, 1);
  image.bytes.fill(0, image.block(), image.block() + 512);
  const storage = loaded(image.bytes);
  const header = readQcow2Header(storage);
  qcow2Format.prepareWrite?.(header, storage);
  t.false(header.dirty);
  t.deepEqual(header, readQcow2Header(storage), 'the new refcount structure is known');
  t.is(check(storage).corruptions, 0);
  const bytes = Buffer.alloc(storage.size());
  storage.read(0, bytes, 0, bytes.length);
  t.deepEqual(guestClusters(bytes), before);
});

test('qcow2Format.prepareWrite() refuses what cannot be repaired', (t) => {
  const image = new Qcow2Bytes(memoryImage({ refcountBits: 1 }));
  image.set64(72, 1);
  image.set64(image.entryAt(1), image.u64(image.entryAt(0)));
  const storage = loaded(image.bytes);
  const error = t.throws(() => qcow2Format.prepareWrite?.(readQcow2Header(storage), storage), {
    instanceOf: BlockError,
  });
  t.is(error.code, 'CORRUPT_IMAGE');
  t.regex(error.message, /not closed cleanly/);
});

test('ClusterCounts grows with its values and stops at its limit', (t) => {
  const counts = new ClusterCounts('a.qcow2', 1024 * 1024);
  for (const [cluster, times] of [
    [5, 200],
    [5, 100],
    [5, 70_000],
    [2 ** 40, 1],
  ]) {
    counts.add(cluster, times);
  }
  t.is(counts.get(5), 70_300);
  t.is(counts.get(4), 0);
  t.is(counts.end(), 2 ** 40 + 1);
  t.true(counts.anyIn(0, 6));
  t.false(counts.anyIn(6, 2 ** 30));
  t.is(counts.add(5, -70_300), 0);
  const error = t.throws(
    () => {
      for (let page = 0; page < 100; page++) counts.add(page * 32768, 1);
    },
    { instanceOf: BlockError },
  );
  t.is(error.code, 'LIMIT_EXCEEDED');
});
