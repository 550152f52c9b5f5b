/** Tables of qcow2 images that strangers made: what is wrong fails alone, nothing is written where it must not be. */
import test from 'ava';
import { takeSnapshot } from '../../../../src/block/snapshots';
import { BlockError } from '../../../../src/errors';
import { qcow2Format } from '../../../../src/formats/qcow2/format';
import { readQcow2Header } from '../../../../src/formats/qcow2/header';
import { MemoryStorage } from '../../../../src/storage/memory';
import { KIB, MIB } from '../../../../src/units';
import { openChainOf } from '../../../helpers/images';

const CLUSTER = 64 * KIB;
const SIZE = 4 * MIB;

/** Four clusters of data; the others were never written. */
function image(options: { version?: 2 | 3; extendedL2?: boolean } = {}): { storage: MemoryStorage; l2: number } {
  const storage = MemoryStorage.create(16 * MIB, 'a.qcow2');
  qcow2Format.create?.(storage, { size: SIZE, ...options });
  const chain = openChainOf([storage]);
  chain.node.write(0, Buffer.alloc(4 * CLUSTER, 7), 0, 4 * CLUSTER);
  chain.finish();
  const entry = Buffer.alloc(8);
  storage.read(readQcow2Header(storage).l1TableOffset, entry, 0, 8);
  return { storage, l2: Number(entry.readBigUInt64BE() & 0xffffffffffff00n) };
}

function put(storage: MemoryStorage, offset: number, ...values: bigint[]): void {
  const bytes = Buffer.alloc(8 * values.length);
  for (const [i, value] of values.entries()) bytes.writeBigUInt64BE(value, i * 8);
  storage.write(offset, bytes, 0, bytes.length, 'create');
}

function bytesOf(storage: MemoryStorage): Buffer {
  const bytes = Buffer.alloc(storage.size());
  storage.read(0, bytes, 0, bytes.length);
  return bytes;
}

const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;

const ENTRIES: [name: string, entry: bigint, options?: { version: 2 }][] = [
  ['unaligned', COPIED | 0x50200n],
  ['in the header', COPIED | 0x200n],
  ['past the end', COPIED | 0x7fff0000n],
  ['at the largest offset', COPIED | 0xffffffffff0000n],
  ['all bits but compressed and zero', 0xbffffffffffffffen],
  ['compressed past the end', COMPRESSED | 0x7fff0000n],
  ['compressed in the header', COMPRESSED | 0x200n],
  ['compressed, all bits', 0x7fffffffffffffffn],
  ['compressed data that are no stream', COMPRESSED | 0x50000n],
  ['a zero cluster of version 2', 1n, { version: 2 }],
];

test('an L2 entry that is wrong fails its cluster, on reading and writing, and no other', (t) => {
  for (const [name, entry, options] of ENTRIES) {
    const { storage, l2 } = image(options);
    put(storage, l2 + 8, entry);
    const before = bytesOf(storage);
    const { node } = openChainOf([storage], { readOnly: true });
    const bytes = Buffer.alloc(CLUSTER);
    for (const cluster of [0, 2, 3]) {
      node.read(cluster * CLUSTER, bytes, 0, CLUSTER);
      t.true(
        bytes.every((byte) => byte === 7),
        name,
      );
    }
    const error = t.throws(() => node.read(CLUSTER, bytes, 0, CLUSTER), { instanceOf: BlockError }, name);
    t.is(error?.code, 'CORRUPT_IMAGE', name);
    t.is(Buffer.compare(bytesOf(storage), before), 0, `${name}: reading changed the file`);

    const chain = openChainOf([storage]);
    chain.node.write(5, Buffer.of(9), 0, 1);
    t.throws(() => chain.node.write(CLUSTER + 5, Buffer.of(1), 0, 1), { instanceOf: BlockError }, name);
    chain.node.read(0, bytes, 0, CLUSTER);
    t.is(bytes[5], 9);
    chain.finish();
    // A stream that is damaged is no table.
    t.is(
      readQcow2Header(storage).corrupt,
      options?.version !== 2 && name !== 'compressed data that are no stream',
      name,
    );
  }
  t.is(ENTRIES.length, 10);
});

test('an L1 entry that is wrong fails what it maps', (t) => {
  for (const entry of [COPIED | 0x200n, COPIED | 0x50200n, COPIED | 0x7fff0000n, 0xffffffffffff0000n]) {
    const { storage } = image();
    put(storage, readQcow2Header(storage).l1TableOffset, entry);
    const chain = openChainOf([storage]);
    const bytes = Buffer.alloc(10);
    for (const access of [() => chain.node.read(0, bytes, 0, 10), () => chain.node.write(0, bytes, 0, 10)]) {
      t.is(t.throws(access, { instanceOf: BlockError })?.code, 'CORRUPT_IMAGE', entry.toString(16));
    }
    chain.finish();
  }
});

test('subclusters that are both allocated and zero, or allocated without a place, fail alone', (t) => {
  const { storage, l2 } = image({ extendedL2: true });
  const entry = Buffer.alloc(16);
  storage.read(l2 + 16, entry, 0, 16);
  put(storage, l2 + 16, entry.readBigUInt64BE(0), 0xffffffffn | (1n << 35n));
  put(storage, l2 + 10 * 16, 0n, 1n << 5n);
  const { node } = openChainOf([storage], { readOnly: true });
  const bytes = Buffer.alloc(2 * KIB);
  for (const [offset, good] of [
    [CLUSTER + 2 * 2 * KIB, true],
    [CLUSTER + 3 * 2 * KIB, false],
    [CLUSTER + 4 * 2 * KIB, true],
    [10 * CLUSTER + 4 * 2 * KIB, true],
    [10 * CLUSTER + 5 * 2 * KIB, false],
  ] as const) {
    const read = () => node.read(offset, bytes, 0, bytes.length);
    if (good) t.notThrows(read, String(offset));
    else t.is(t.throws(read, { instanceOf: BlockError })?.code, 'CORRUPT_IMAGE', String(offset));
  }
});

test('counts of 0 for what the header names: nothing is allocated there', (t) => {
  const { storage } = image();
  const header = readQcow2Header(storage);
  const table = Buffer.alloc(8);
  storage.read(header.refcountTableOffset, table, 0, 8);
  const block = Number(table.readBigUInt64BE());
  storage.write(block, Buffer.alloc(CLUSTER), 0, CLUSTER, 'create');
  const chain = openChainOf([storage]);
  const error = t.throws(() => chain.node.write(MIB, Buffer.of(1), 0, 1), { instanceOf: BlockError });
  t.is(error?.code, 'CORRUPT_IMAGE');
  t.regex(error?.message ?? '', /the reference count of the header is 0/);
  chain.finish();
  t.notThrows(() => readQcow2Header(storage));
});

test('a snapshot table that makes no sense: the disk can be read, and nobody writes beside it', (t) => {
  const { storage } = image();
  const chain = openChainOf([storage]);
  takeSnapshot(chain.node, 'one');
  chain.finish();
  const table = readQcow2Header(storage).snapshotsOffset;
  const sound = Buffer.alloc(64);
  storage.read(table, sound, 0, sound.length);
  const damages: [name: string, damage: (entry: Buffer) => void][] = [
    ['L1 table past the end', (entry) => entry.writeBigUInt64BE(1n << 40n, 0)],
    ['L1 table of 32 GiB', (entry) => entry.writeUInt32BE(0xffffffff, 8)],
    ['extra data of 4 GiB', (entry) => entry.writeUInt32BE(0xffffffff, 36)],
  ];
  for (const [name, damage] of damages) {
    const entry = Buffer.from(sound);
    damage(entry);
    storage.write(table, entry, 0, entry.length, 'create');
    const before = bytesOf(storage);
    t.throws(() => openChainOf([storage]), { instanceOf: BlockError, message: /entry 0/ }, name);
    t.deepEqual(bytesOf(storage), before, name);
    const { node } = openChainOf([storage], { readOnly: true });
    const bytes = Buffer.alloc(CLUSTER);
    node.read(0, bytes, 0, CLUSTER);
    t.true(
      bytes.every((byte) => byte === 7),
      name,
    );
  }
});

test('a refcount table that names no cluster, or one full block again and again: refused in time', (t) => {
  for (const [name, entry] of [
    ['unaligned', 0x20200n],
    ['past the end', 0x7fff0000n],
    ['above 2^53', 1n << 60n],
    ['in the header', 0x200n],
  ] as const) {
    const { storage } = image();
    put(storage, readQcow2Header(storage).refcountTableOffset, entry);
    const chain = openChainOf([storage]);
    const error = t.throws(() => chain.node.write(MIB, Buffer.of(1), 0, 1), { instanceOf: BlockError }, name);
    t.is(error?.code, 'CORRUPT_IMAGE', name);
  }
  const { storage } = image();
  const { refcountTableOffset } = readQcow2Header(storage);
  storage.write(0x30000 + 10 * CLUSTER, Buffer.alloc(CLUSTER, 0xff), 0, CLUSTER, 'create');
  for (let at = 0; at < CLUSTER; at += 8) put(storage, refcountTableOffset + at, BigInt(0x30000 + 10 * CLUSTER));
  const chain = openChainOf([storage]);
  const error = t.throws(() => chain.node.write(MIB, Buffer.of(1), 0, 1), { instanceOf: BlockError });
  t.regex(error?.message ?? '', /past the end of the file have references/);
});

test('a refcount block that lies where the file is about to end: no data is written there', (t) => {
  const { storage } = image();
  const end = storage.size();
  put(storage, readQcow2Header(storage).refcountTableOffset + 8, BigInt(end));
  const chain = openChainOf([storage]);
  const error = t.throws(() => chain.node.write(MIB, Buffer.alloc(CLUSTER, 9), 0, CLUSTER), { instanceOf: BlockError });
  t.regex(error?.message ?? '', /the reference count of the refcount block at .* is 0/);
  chain.finish();
  t.is(storage.size(), end);
});

test('an L2 table that becomes a refcount block while it is used as a table: no entry is written there', (t) => {
  const cluster = 32 * KIB;
  const storage = MemoryStorage.create(256 * MIB, 'a.qcow2');
  qcow2Format.create?.(storage, { size: 512 * MIB, clusterSize: cluster, refcountBits: 64 });
  const first = openChainOf([storage]);
  first.node.write(0, Buffer.alloc(cluster, 7), 0, cluster);
  first.finish();
  const { refcountTableOffset, l1TableOffset } = readQcow2Header(storage);
  const entry = Buffer.alloc(8);
  storage.read(refcountTableOffset, entry, 0, 8);
  // The first block is full, and L1 names the cluster where the next one will be made.
  const perBlock = cluster / 8;
  put(storage, Number(entry.readBigUInt64BE()), ...Array<bigint>(perBlock).fill(1n));
  const next = perBlock * cluster;
  put(storage, l1TableOffset + 8, COPIED | BigInt(next));
  storage.truncate(next + cluster, 'create');

  const { node } = openChainOf([storage]);
  const write = (guest: number) => node.write(guest, Buffer.alloc(512, 9), 0, 512);
  write(3 * cluster);
  const span = perBlock * cluster;
  // Nothing speaks against the second half of the table, whose counts nobody has looked at.
  write(span + span / 2);
  const error = t.throws(() => write(span), { instanceOf: BlockError, code: 'CORRUPT_IMAGE' });
  t.regex(error?.message ?? '', /table offset .* \(the refcount block/);
});
