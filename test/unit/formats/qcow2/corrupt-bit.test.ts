/** Damage that is met on the way of a change: the image says so from then on, and is neither changed nor destroyed. */
import test, { type ExecutionContext } from 'ava';
import type { BlockNode } from '../../../../src/block/node';
import { takeSnapshot } from '../../../../src/block/snapshots';
import { BlockError } from '../../../../src/errors';
import { checkQcow2 } from '../../../../src/formats/qcow2/check';
import { qcow2Format } from '../../../../src/formats/qcow2/format';
import { readQcow2Header } from '../../../../src/formats/qcow2/header';
import { TableCache } from '../../../../src/shared/table-cache';
import { FaultyStorage } from '../../../../src/storage/faulty';
import { MemoryStorage } from '../../../../src/storage/memory';
import { alignUp, KIB, MIB } from '../../../../src/units';
import { checkStorage, createInMemory, openChainOf } from '../../../helpers/images';

const CLUSTER = 64 * KIB;
const COPIED = 1n << 63n;

interface Damaged {
  storage: MemoryStorage;
  /** Host offsets. */
  l1: number;
  l2: number;
  refcountTable: number;
  block: number;
}

/** Four clusters of data, a snapshot if asked for, the entry of the second not yet damaged. */
function image(options: { version?: 2 | 3; snapshot?: boolean } = {}): Damaged {
  const storage = MemoryStorage.create(16 * MIB, 'a.qcow2');
  qcow2Format.create?.(storage, { size: 4 * MIB, version: options.version });
  const chain = openChainOf([storage]);
  chain.node.write(0, Buffer.alloc(4 * CLUSTER, 7), 0, 4 * CLUSTER);
  if (options.snapshot === true) {
    takeSnapshot(chain.node, 's');
    chain.node.write(0, Buffer.alloc(4 * CLUSTER, 7), 0, 4 * CLUSTER);
  }
  chain.finish();
  const header = readQcow2Header(storage);
  const at = (offset: number) => Number(entryAt(storage, offset) & 0xffffffffffff00n);
  return {
    storage,
    l1: header.l1TableOffset,
    l2: at(header.l1TableOffset),
    refcountTable: header.refcountTableOffset,
    block: at(header.refcountTableOffset),
  };
}

function entryAt(storage: MemoryStorage, offset: number): bigint {
  const bytes = Buffer.alloc(8);
  storage.read(offset, bytes, 0, 8);
  return bytes.readBigUInt64BE();
}

function put(storage: MemoryStorage, offset: number, value: bigint): void {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(value);
  storage.write(offset, bytes, 0, 8, 'create');
}

const bytesAt = (storage: MemoryStorage, offset: number, length: number) => {
  const bytes = Buffer.alloc(length);
  storage.read(offset, bytes, 0, length);
  return bytes;
};

type Change = (node: BlockNode) => void;
const one = Buffer.alloc(CLUSTER, 1);
const CHANGES: [name: string, change: Change][] = [
  ['write in place', (node) => node.write(CLUSTER + 5, one, 0, 100)],
  ['write a cluster', (node) => node.write(CLUSTER, one, 0, CLUSTER)],
  ['write compressed', (node) => node.write(CLUSTER, one, 0, CLUSTER, { compressed: true })],
  ['zero a part', (node) => node.writeZeroes(CLUSTER + 512, 512)],
  ['zero the cluster', (node) => node.writeZeroes(CLUSTER, CLUSTER)],
  ['allocate', (node) => node.allocate(CLUSTER, CLUSTER)],
];

/** The change is refused and marks the image; nothing but the header's bits differs; reads go on, changes do not. */
function refusedAndMarked(t: ExecutionContext, { storage }: Damaged, change: Change, words: string, version = 3): void {
  const before = bytesAt(storage, 0, storage.size());
  const chain = openChainOf([storage]);
  const { node } = chain;
  t.is(t.throws(() => change(node), { instanceOf: BlockError }, words)?.code, 'CORRUPT_IMAGE', words);
  t.is(readQcow2Header(storage).corrupt, version === 3, `${words}: the bit, before any flush`);
  const bytes = Buffer.alloc(CLUSTER);
  node.read(2 * CLUSTER, bytes, 0, CLUSTER);
  t.true(bytes.every((byte) => byte === 7));
  for (const again of [...CHANGES.map(([, other]) => other), () => node.write(3 * CLUSTER, one, 0, 1)]) {
    const error = t.throws(() => again(node), { instanceOf: BlockError }, words);
    t.regex(error?.message ?? '', /marked corrupt/, words);
  }
  t.throws(() => node.resize(8 * MIB), { message: /marked corrupt/ });
  t.throws(() => takeSnapshot(node, 'x'), { message: /marked corrupt/ });
  t.notThrows(() => node.flush());
  chain.finish();
  const after = bytesAt(storage, 0, before.length);
  after[79] = before[79];
  // Counts may have been taken for a place that was then not needed.
  t.is(Buffer.compare(after.subarray(0, CLUSTER), before.subarray(0, CLUSTER)), 0, `${words}: header`);
  if (version === 3) t.throws(() => openChainOf([storage]), { message: /marked corrupt/ });
}

test('guest data over a table or the header: refused, marked, and the table is as it was', (t) => {
  let cases = 0;
  for (const [name, change] of CHANGES) {
    for (const where of ['l1', 'l2', 'refcountTable', 'block'] as const) {
      for (const flag of [COPIED, 0n]) {
        const damaged = image();
        const { storage } = damaged;
        put(storage, damaged.l2 + 8, flag | BigInt(damaged[where]));
        const tables = (['l1', 'l2', 'refcountTable'] as const).map((table) =>
          bytesAt(storage, damaged[table], CLUSTER),
        );
        const used = bytesAt(storage, damaged.block, 16);
        refusedAndMarked(t, damaged, change, `${name} over ${where}`);
        for (const [i, table] of (['l1', 'l2', 'refcountTable'] as const).entries()) {
          t.is(
            Buffer.compare(bytesAt(storage, damaged[table], CLUSTER), tables[i]),
            0,
            `${name} over ${where}: ${table}`,
          );
        }
        t.is(Buffer.compare(bytesAt(storage, damaged.block, 16), used), 0, `${name} over ${where}: counts`);
        cases++;
      }
    }
  }
  t.is(cases, 48, `${cases} cases`);
});

test('entries that name no cluster: refused and marked; version 2 has no bit, and takes no more changes either', (t) => {
  for (const version of [2, 3] as const) {
    for (const entry of [COPIED | 0x50200n, COPIED | 0x200n, COPIED | 0x7fff0000n]) {
      for (const [name, change] of CHANGES) {
        const damaged = image({ version });
        put(damaged.storage, damaged.l2 + 8, entry);
        refusedAndMarked(t, damaged, change, `${name}, ${entry.toString(16)}, version ${version}`, version);
      }
    }
  }
});

test('an L1 entry that names another table: nothing is written there', (t) => {
  for (const where of ['l1', 'refcountTable'] as const) {
    const damaged = image();
    put(damaged.storage, damaged.l1, COPIED | BigInt(damaged[where]));
    const table = bytesAt(damaged.storage, damaged[where], CLUSTER);
    const chain = openChainOf([damaged.storage]);
    t.throws(() => chain.node.write(20 * CLUSTER, one, 0, CLUSTER), { instanceOf: BlockError });
    t.throws(() => chain.node.write(20 * CLUSTER, one, 0, CLUSTER), { message: /marked corrupt/ });
    chain.finish();
    t.is(Buffer.compare(bytesAt(damaged.storage, damaged[where], CLUSTER), table), 0, where);
    t.true(readQcow2Header(damaged.storage).corrupt);
  }
});

test('a repair takes the bit off when all is well, and only then', (t) => {
  const damaged = image();
  const { storage } = damaged;
  put(storage, damaged.l2 + 8, COPIED | BigInt(damaged.refcountTable));
  refusedAndMarked(t, damaged, CHANGES[0][1], 'in place');
  checkQcow2(readQcow2Header(storage), storage, 'leaks');
  t.true(readQcow2Header(storage).corrupt, 'still wrong');
  put(storage, damaged.l2 + 8, 0n);
  const result = checkQcow2(readQcow2Header(storage), storage, 'all');
  t.deepEqual([result.corruptions, result.checkErrors], [0, 0]);
  t.false(readQcow2Header(storage).corrupt);
  const chain = openChainOf([storage]);
  chain.node.write(CLUSTER, one, 0, CLUSTER);
  chain.finish();
});

test('reading never marks, whatever it meets', (t) => {
  const { storage, l2 } = image();
  put(storage, l2 + 8, COPIED | 0x50200n);
  const before = bytesAt(storage, 0, storage.size());
  for (const readOnly of [true, false]) {
    const chain = openChainOf([storage], { readOnly });
    t.throws(() => chain.node.read(CLUSTER, Buffer.alloc(5), 0, 5), { instanceOf: BlockError });
    chain.finish();
    t.is(Buffer.compare(bytesAt(storage, 0, storage.size()), before), 0);
  }
});

test('a header that cannot be written: no more changes all the same', (t) => {
  const { storage, l2 } = image();
  put(storage, l2 + 8, COPIED | 0x50200n);
  const faulty = new FaultyStorage(storage);
  const chain = openChainOf([storage], { wrap: () => faulty });
  faulty.arm({ event: 'header-update', errno: 'EIO', once: true, after: 0 });
  t.throws(() => chain.node.write(CLUSTER, one, 0, 5), { message: /L2 cluster offset/ });
  t.throws(() => chain.node.write(0, one, 0, 5), { message: /marked corrupt/ });
  t.is(faulty.fired, 1);
});

test('a place whose table went with a snapshot takes data: what the cache still holds of it is no table', (t) => {
  const storage = createInMemory({ format: 'qcow2', size: MIB, clusterSize: 4096 }, 4 * MIB);
  const chain = openChainOf([storage]);
  // As a reader leaves it who loads a slice in the moment in which the table is given back.
  const cache = new TableCache(chain.descriptor.cache);
  const end = alignUp(storage.size(), 4096);
  for (let offset = end; offset < end + 16 * 4096; offset += 4096) {
    t.true(cache.load(1, { offset, length: 4096, level: 'l2' }, () => {}));
  }
  const data = Buffer.alloc(8 * 4096, 7);
  t.notThrows(() => chain.node.write(0, data, 0, data.length));
  // In place, too.
  t.notThrows(() => chain.node.write(0, data, 0, data.length));
  chain.finish();
  t.deepEqual(checkStorage(storage).messages, []);
});
