/** qcow through the engine: what its tables say, byte by byte. */
import test from 'ava';
import { BlockError } from '../../../../src/errors';
import { QCOW_L1_ENTRIES_MAX, readQcowHeader } from '../../../../src/formats/qcow/header';
import type { MemoryStorage } from '../../../../src/storage/memory';
import { KIB, MIB } from '../../../../src/units';
import { checkStorage, createInMemory, openChainOf } from '../../../helpers/images';
import { DiskModel } from '../../../helpers/model';
import { patternBytes, Random } from '../../../helpers/random';
import { Shadowed } from '../../../helpers/shadowed';
import { entryAt, imageOf, put, putEntry, putStream, streamEntry } from './images';

const CLUSTER = 4 * KIB;

function read(storage: MemoryStorage, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  openChainOf([storage], { readOnly: true }).node.read(offset, bytes, 0, length);
  return bytes;
}

/** L1 at 48, one L2 table at 4 KiB, entries as given. */
function imageWith(entries: bigint[], length = 16 * CLUSTER): MemoryStorage {
  const storage = imageOf({}, length);
  putEntry(storage, 48, BigInt(CLUSTER));
  for (const [index, entry] of entries.entries()) putEntry(storage, CLUSTER + index * 8, entry);
  return storage;
}

test('every geometry takes writes on both sides of its boundaries', (t) => {
  let cases = 0;
  for (let clusterBits = 9; clusterBits <= 16; clusterBits++) {
    for (let l2Bits = 6; l2Bits <= 13; l2Bits++) {
      const [cluster, table] = [2 ** clusterBits, 2 ** (clusterBits + l2Bits)];
      const size = 2 * table + 3 * 512;
      const storage = imageOf({ clusterBits, l2Bits, size: BigInt(size) }, 72);
      const places = [0, cluster, 2048 * cluster, table, 2 * table, size].filter((place) => place <= size);
      const shadow = new Shadowed(undefined as never, new DiskModel(size));
      for (const round of ['write', 'read'] as const) {
        const chain = openChainOf([storage], { readOnly: round === 'read' });
        shadow.node = chain.node;
        for (const place of places) {
          const from = Math.max(0, place - 700);
          const length = Math.min(size, place + 700) - from;
          if (round === 'write') shadow.write(from, length);
          const found = shadow.difference(from, length);
          if (found !== undefined) t.fail(`${clusterBits}, ${l2Bits}: ${found}`);
        }
        if (round === 'write') chain.finish();
      }
      const { corruptions, leaks, messages } = checkStorage(storage);
      if (corruptions + leaks > 0) t.fail(`${clusterBits}, ${l2Bits}: ${messages.join('; ')}`);
      cases++;
    }
  }
  t.is(cases, 64);
});

test('a flush of the L1 table writes its entries and not what shares a sector with them', (t) => {
  // Three entries at 4,000, in the middle of data that is nobody's.
  const storage = imageOf({ l1Offset: 4000n }, 2 * CLUSTER);
  put(storage, 0xe00, Buffer.alloc(4000 - 0xe00, 0xaa));
  put(storage, 4024, Buffer.alloc(1000, 0xbb));
  const chain = openChainOf([storage]);
  const bytes = patternBytes(0, CLUSTER, 1);
  chain.node.write(4 * MIB, bytes, 0, CLUSTER);
  // Changed behind the engine's back: a write of whole sectors would bring the old bytes back.
  put(storage, 3999, Buffer.from([0xcc]));
  put(storage, 4024, Buffer.from([0xdd]));
  chain.finish();
  t.is(entryAt(storage, 4000 + 16), BigInt(2 * CLUSTER));
  const around = Buffer.alloc(26);
  storage.read(3999, around, 0, 26);
  t.deepEqual([around[0], around[25]], [0xcc, 0xdd]);
  t.deepEqual(read(storage, 4 * MIB, CLUSTER), Buffer.from(bytes));
});

test('compressed clusters are read, at any byte of the file, and up to its last', (t) => {
  const one = Buffer.alloc(CLUSTER, 'one ');
  const two = Buffer.from(patternBytes(0, CLUSTER, 2)).fill(7, 100, 4000);
  const storage = imageWith([], 3 * CLUSTER);
  putEntry(storage, CLUSTER, putStream(storage, 2 * CLUSTER + 77, one));
  putEntry(storage, CLUSTER + 8, putStream(storage, 3 * CLUSTER + 5, two));
  t.deepEqual(read(storage, 0, 3 * CLUSTER), Buffer.concat([one, two, Buffer.alloc(CLUSTER)]));
  t.deepEqual(read(storage, CLUSTER - 10, 20), Buffer.concat([one.subarray(-10), two.subarray(0, 10)]));
  const status = openChainOf([storage], { readOnly: true }).node.layerStatus(100, 3 * CLUSTER);
  t.like(status, { length: CLUSTER - 100, data: true, compressed: true });
});

test('an overwritten compressed cluster gets a place of its own and keeps the rest', (t) => {
  const one = Buffer.alloc(CLUSTER, 'one ');
  const storage = imageWith([], 2 * CLUSTER);
  putEntry(storage, CLUSTER, putStream(storage, 2 * CLUSTER + 3, one));
  putEntry(storage, CLUSTER + 8, putStream(storage, 2 * CLUSTER + 600, one));
  const chain = openChainOf([storage]);
  chain.node.write(50, Buffer.from('new'), 0, 3);
  chain.node.writeZeroes(CLUSTER, CLUSTER);
  chain.finish();
  const expected = Buffer.concat([one, Buffer.alloc(CLUSTER)]);
  expected.write('new', 50);
  t.deepEqual(read(storage, 0, 2 * CLUSTER), expected);
  t.is(entryAt(storage, CLUSTER), BigInt(3 * CLUSTER));
  t.is(entryAt(storage, CLUSTER + 8), 0n);
  t.is(checkStorage(storage).corruptions, 0);
});

test('a damaged stream fails on its cluster alone', (t) => {
  const good = Buffer.alloc(CLUSTER, 'good');
  const storage = imageWith([], 4 * CLUSTER);
  const at = 4 * CLUSTER;
  const [stream, short, long] = [2 * CLUSTER, 2 * CLUSTER + 1024, 2 * CLUSTER + 2048];
  putEntry(storage, CLUSTER, putStream(storage, at, good));
  const entries = [
    streamEntry(3 * CLUSTER, 100), // zeroes: no stream
    putStream(storage, stream, good) - 5n * 2n ** 51n, // cut off
    putStream(storage, short, good.subarray(1)), // makes less than a cluster
    putStream(storage, long, Buffer.alloc(64 * KIB)), // makes more
    streamEntry(at, 0),
    streamEntry(0, 30),
    streamEntry(10 * MIB, 30),
    (1n << 64n) - 1n,
  ];
  for (const [index, entry] of entries.entries()) putEntry(storage, CLUSTER + (index + 1) * 8, entry);
  for (let index = 1; index <= entries.length; index++) {
    const error = t.throws(() => read(storage, index * CLUSTER + 5, 10), { instanceOf: BlockError }, `entry ${index}`);
    t.is(error?.code, 'CORRUPT_IMAGE', `entry ${index}: ${error?.message}`);
  }
  t.deepEqual(read(storage, 0, CLUSTER), good);
  t.true(read(storage, (entries.length + 1) * CLUSTER, CLUSTER).every((byte) => byte === 0));
});

test('entries that point nowhere fail on their cluster or table alone', (t) => {
  const wrong = [1n, 512n, BigInt(CLUSTER + 1), 0n, BigInt(16 * CLUSTER), 2n ** 62n, 2n ** 63n - 1n, 4096n * 2n ** 50n];
  const storage = imageWith(wrong);
  for (const [index, entry] of wrong.entries()) {
    if (entry === 0n) t.notThrows(() => read(storage, index * CLUSTER, 10));
    else t.is(t.throws(() => read(storage, index * CLUSTER, 10), { instanceOf: BlockError })?.code, 'CORRUPT_IMAGE');
  }
  for (const table of [1n, 48n, BigInt(16 * CLUSTER), 2n ** 63n + 4096n, 2n ** 64n - 512n]) {
    putEntry(storage, 56, table);
    const error = t.throws(() => read(storage, 2 * MIB, 10), { instanceOf: BlockError }, String(table));
    t.is(error?.code, 'CORRUPT_IMAGE');
    t.true(read(storage, 4 * MIB, 10).every((byte) => byte === 0));
  }
});

test('a last cluster that is cut keeps what is written into its missing part, also when the file grows', (t) => {
  const storage = imageWith([BigInt(2 * CLUSTER)], 2 * CLUSTER + 100);
  const chain = openChainOf([storage]);
  const bytes = patternBytes(0, 500, 3);
  chain.node.write(3000, bytes, 0, 500);
  for (let i = 1; i < 400; i++) chain.node.write(i * CLUSTER, patternBytes(i * CLUSTER, CLUSTER, 4), 0, CLUSTER);
  chain.finish();
  t.deepEqual(read(storage, 3000, 500), Buffer.from(bytes));
  t.is(checkStorage(storage).corruptions, 0);
});

test('growing past the L1 table moves it, with all that it names, and again and again', (t) => {
  for (const clusterSize of [512, 4 * KIB, 64 * KIB]) {
    const size = MIB;
    const storage = createInMemory({ format: 'qcow', clusterSize, size }, 24 * MIB);
    const shadow = new Shadowed(undefined as never, new DiskModel(size));
    const random = new Random(9);
    let chain = openChainOf([storage]);
    shadow.node = chain.node;
    const moved = new Set<number>();
    for (let round = 0; round < 40; round++) {
      shadow.write(random.below(shadow.size - 3000), 3000);
      shadow.resize(shadow.size + 512 * random.between(1, 30000));
      shadow.write(shadow.size - 2000, 2000);
      moved.add(readQcowHeader(storage).l1TableOffset);
      if (round % 8 !== 7) continue;
      t.is(shadow.differenceAnywhere(), undefined);
      chain.finish();
      const { corruptions, leaks, messages } = checkStorage(storage);
      t.deepEqual([corruptions, leaks], [0, 0], `${clusterSize}, round ${round}: ${messages.join('; ')}`);
      chain = openChainOf([storage]);
      shadow.node = chain.node;
      t.is(shadow.differenceAnywhere(), undefined);
    }
    t.true(clusterSize === 64 * KIB ? moved.size >= 2 : moved.size >= 4, `${moved.size} places`);
  }
});

test('a disk does not grow past what an L1 table may have', (t) => {
  const storage = createInMemory({ format: 'qcow', clusterSize: 512, size: MIB }, 4 * MIB);
  const { node } = openChainOf([storage]);
  const most = QCOW_L1_ENTRIES_MAX * 512 * 512;
  t.is(t.throws(() => node.resize(most + 512), { instanceOf: BlockError })?.code, 'LIMIT_EXCEEDED');
  t.is(node.size(), MIB);
});

test('zeroes over a backing file take a cluster, and none without one or behind its end', (t) => {
  const base = createInMemory({ format: 'raw', size: 8 * CLUSTER }, MIB);
  put(base, 0, patternBytes(0, 8 * CLUSTER, 1));
  const backing = { name: 'base', format: 'raw' };
  const storage = createInMemory({ format: 'qcow', clusterSize: CLUSTER, size: 64 * CLUSTER, backing }, 4 * MIB);
  const chain = openChainOf([storage, base]);
  chain.node.writeZeroes(2 * CLUSTER, 62 * CLUSTER);
  const bytes = Buffer.alloc(64 * CLUSTER);
  chain.node.read(0, bytes, 0, bytes.length);
  t.deepEqual(bytes.subarray(0, 2 * CLUSTER), Buffer.from(patternBytes(0, 2 * CLUSTER, 1)));
  t.true(bytes.subarray(2 * CLUSTER).every((byte) => byte === 0));
  t.true(chain.node.layerStatus(2 * CLUSTER, 6 * CLUSTER).data);
  // A piece of zeroes may reach over the end of the backing file, and no further.
  t.like(chain.node.layerStatus(24 * CLUSTER, 40 * CLUSTER), { data: false, length: 40 * CLUSTER });
});
