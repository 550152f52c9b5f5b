/** Entries, counts, streams and snapshot tables as bytes. */
import * as zlib from 'node:zlib';
import test from 'ava';
import * as fc from 'fast-check';
import { inflateCluster } from '../../../../src/formats/qcow2/compressed';
import {
  bitRange,
  compressedBytes,
  compressedOffset,
  highOf,
  lowOf,
  offsetOf,
  runOfBits,
  swap,
} from '../../../../src/formats/qcow2/entry';
import { qcow2Format } from '../../../../src/formats/qcow2/format';
import { readQcow2Header } from '../../../../src/formats/qcow2/header';
import { getCount, setCount } from '../../../../src/formats/qcow2/refcount-codec';
import {
  encodeSnapshotTable,
  type Qcow2Snapshot,
  readSnapshotTable,
} from '../../../../src/formats/qcow2/snapshot-table';
import { MemoryStorage } from '../../../../src/storage/memory';
import { KIB, MIB } from '../../../../src/units';

const property = (parameters: fc.Arbitrary<unknown>[], check: (...values: never[]) => void) =>
  fc.assert(
    fc.property(fc.tuple(...parameters), (values) => check(...(values as never[]))),
    { seed: 7, numRuns: 300 },
  );

test('offsets survive their two halves and their byte order', (t) => {
  property([fc.integer({ min: 0, max: 2 ** 44 - 1 })], (sector: number) => {
    const offset = sector * 512;
    t.is(offsetOf(highOf(offset), lowOf(offset)), offset);
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64BE(BigInt(offset));
    t.is(swap(bytes.readUInt32LE(0)), highOf(offset));
    t.is(swap(bytes.readUInt32LE(4)), lowOf(offset));
  });
});

test('compressed entries: offset and sectors, for every cluster size', (t) => {
  for (let bits = 9; bits <= 21; bits++) {
    property(
      [fc.integer({ min: 0, max: 2 ** 48 - 1 }), fc.integer({ min: 0, max: 2 ** (bits - 8) - 1 })],
      (offset: number, sectors: number) => {
        const entry = (1n << 62n) | (BigInt(sectors) << BigInt(70 - bits)) | BigInt(offset);
        const high = Number(entry >> 32n);
        const low = Number(entry & 0xffffffffn);
        t.is(compressedOffset(high, low, bits), offset);
        t.is(compressedBytes(high, low, bits), (sectors + 1) * 512 - (offset % 512));
      },
    );
  }
});

test('runOfBits() and bitRange() agree with counting', (t) => {
  property(
    [fc.integer({ min: 0, max: 0xffffffff }), fc.integer({ min: 0, max: 31 })],
    (pattern: number, from: number) => {
      const text = pattern.toString(2).padStart(32, '0').split('').reverse().join('');
      t.is(runOfBits(pattern, from), text.slice(from).search(/0|$/));
    },
  );
  for (let from = 0; from < 32; from++) {
    for (let to = from + 1; to <= 32; to++) {
      const bits = bitRange(from, to);
      t.is(bits, Number(((1n << BigInt(to - from)) - 1n) << BigInt(from)));
    }
  }
});

test('counts of every width: what is set is read, the neighbours stay', (t) => {
  for (let order = 0; order <= 6; order++) {
    const most = order === 6 ? Number.MAX_SAFE_INTEGER : 2 ** (2 ** order) - 1;
    property([fc.integer({ min: 0, max: 40 }), fc.integer({ min: 0, max: most })], (index: number, value: number) => {
      const bytes = new Uint8Array(512).fill(0xaa);
      const before = [...Array(48).keys()].map((i) => getCount(bytes, 16, i, order));
      setCount(bytes, 16, index, order, value);
      for (let i = 0; i < 48; i++) t.is(getCount(bytes, 16, i, order), i === index ? value : before[i]);
    });
  }
  // Less than a byte: the first count is in the low bits. A byte and more: big-endian.
  t.is(getCount(Uint8Array.of(0b0010), 0, 1, 0), 1);
  t.is(getCount(Uint8Array.of(0x21), 0, 1, 2), 2);
  t.is(getCount(Uint8Array.of(0, 0, 1, 2), 0, 1, 4), 258);
});

const failure = (problem: string) => new Error(problem);
const CLUSTER = 64 * KIB;

test('inflateCluster() takes a stream that makes one cluster, with rubbish behind it, and no other', (t) => {
  const cluster = Buffer.alloc(CLUSTER);
  for (let i = 0; i < CLUSTER; i++) cluster[i] = (i * i) >> 7;
  const stream = zlib.deflateRawSync(cluster);
  const target = new Uint8Array(CLUSTER);
  inflateCluster('zlib', Buffer.concat([stream, Buffer.alloc(700, 0xee)]), target, failure);
  t.is(Buffer.compare(cluster, target), 0);
  for (let cut = 0; cut < stream.length; cut += Math.ceil(stream.length / 40)) {
    t.throws(() => inflateCluster('zlib', stream.subarray(0, cut), target, failure), undefined, `cut at ${cut}`);
  }
  const short = zlib.deflateRawSync(cluster.subarray(1));
  t.throws(() => inflateCluster('zlib', short, target, failure), { message: /65535 bytes, a cluster has 65536/ });
  const bomb = zlib.deflateRawSync(Buffer.alloc(64 * MIB));
  t.throws(() => inflateCluster('zlib', bomb, target, failure), { message: /damaged/ });
});

/** A zstd frame of blocks that are raw or one byte repeated. */
function frame(blocks: { type: 0 | 1; bytes: Buffer; size: number }[], descriptor = Buffer.of(0, 0x58)): Buffer {
  const parts = blocks.map(({ type, bytes, size }, index) => {
    const head = Buffer.alloc(3);
    head.writeUIntLE(size * 8 + type * 2 + (index === blocks.length - 1 ? 1 : 0), 0, 3);
    return Buffer.concat([head, bytes]);
  });
  return Buffer.concat([Buffer.of(0x28, 0xb5, 0x2f, 0xfd), descriptor, ...parts]);
}

test('inflateCluster() of zstd: one frame, bounded, with rubbish behind it', (t) => {
  const target = new Uint8Array(CLUSTER);
  const repeat = (size: number) => ({ type: 1 as const, bytes: Buffer.of(7), size });
  const good = frame([repeat(CLUSTER - 3), { type: 0, bytes: Buffer.of(1, 2, 3), size: 3 }]);
  inflateCluster('zstd', Buffer.concat([good, Buffer.alloc(300, 0x28)]), target, failure);
  t.deepEqual([...target.subarray(CLUSTER - 5)], [7, 7, 1, 2, 3]);
  for (let cut = 0; cut < good.length; cut++) {
    t.throws(() => inflateCluster('zstd', good.subarray(0, cut), target, failure), undefined, `cut at ${cut}`);
  }
  const bad: [string, Buffer, RegExp][] = [
    ['too long', frame([repeat(CLUSTER), repeat(1)]), /more than 65536/],
    ['too short', frame([repeat(CLUSTER - 1)]), /65535 bytes/],
    ['never ends', Buffer.concat([frame([repeat(1)]).subarray(0, 6), Buffer.alloc(4000, 0)]), /cut off|more than/],
    ['a bomb', frame(Array.from({ length: 1000 }, () => repeat(128 * KIB))), /more than 65536/],
    ['a huge window', frame([repeat(CLUSTER)], Buffer.of(0, 0xff)), /window is too large/],
    ['a dictionary', frame([repeat(CLUSTER)], Buffer.of(1, 0x58, 9)), /dictionary/],
    [
      'a huge size',
      frame([repeat(CLUSTER)], Buffer.concat([Buffer.of(0xe0), Buffer.alloc(8, 0xff)])),
      /more than 65536/,
    ],
    ['not zstd', Buffer.alloc(100, 1), /no zstd frame/],
  ];
  for (const [name, bytes, message] of bad) {
    t.throws(() => inflateCluster('zstd', bytes, target, failure), { message }, name);
  }
});

function snapshot(name: string, more: Partial<Qcow2Snapshot> = {}): Qcow2Snapshot {
  const nameBytes = Uint8Array.from(Buffer.from(name));
  return {
    id: '1',
    name,
    idBytes: Uint8Array.of(0x31),
    nameBytes,
    l1Offset: 0x30000,
    l1Entries: 1,
    dateSeconds: 1,
    dateNanoseconds: 2,
    vmClock: 3n,
    vmStateSize: 4,
    virtualSize: MIB,
    extra: new Uint8Array(24),
    ...more,
  };
}

function tableImage(bytes: Uint8Array): MemoryStorage {
  const storage = MemoryStorage.create(4 * MIB, 'a');
  qcow2Format.create?.(storage, { size: 8 * MIB });
  storage.write(0x100000, bytes, 0, bytes.length, 'create');
  return storage;
}

test('snapshot tables: read back as written, names that are no text and unknown extra data too', (t) => {
  const unknown = new Uint8Array(100);
  unknown.set([1, 2, 3, 4], 60);
  const snapshots = [
    snapshot('first'),
    snapshot(''),
    snapshot('x'.repeat(65535), { icount: 77n }),
    snapshot('odd', { nameBytes: Uint8Array.of(0xff, 0, 0x2f) }),
    snapshot('extra', { extra: unknown, vmClock: 2n ** 64n - 1n }),
  ];
  const bytes = encodeSnapshotTable(snapshots);
  const storage = tableImage(bytes);
  const place = { snapshotsOffset: 0x100000, snapshotCount: snapshots.length };
  const found = readSnapshotTable(storage, readQcow2Header(storage), place);
  t.is(encodeSnapshotTable(found).toString('hex'), bytes.toString('hex'));
  t.deepEqual(
    found.map(({ name, icount, vmStateSize, virtualSize }) => [name.slice(0, 6), icount, vmStateSize, virtualSize]),
    [
      ['first', undefined, 4, MIB],
      ['', undefined, 4, MIB],
      ['xxxxxx', 77n, 4, MIB],
      ['\ufffd\0/', undefined, 4, MIB],
      ['extra', undefined, 4, MIB],
    ],
  );
});

test('snapshot tables that are cut off, too long or point nowhere are refused', (t) => {
  const good = encodeSnapshotTable([snapshot('first')]);
  const cases: [string, (bytes: Buffer) => void, string][] = [
    ['L1 in the header', (bytes) => void bytes.writeBigUInt64BE(0n, 0), 'CORRUPT_IMAGE'],
    ['L1 unaligned', (bytes) => void bytes.writeBigUInt64BE(0x30200n, 0), 'CORRUPT_IMAGE'],
    ['L1 past the end', (bytes) => void bytes.writeBigUInt64BE(0x7fff0000n, 0), 'CORRUPT_IMAGE'],
    ['L1 at 2^63', (bytes) => void bytes.writeBigUInt64BE(2n ** 63n, 0), 'LIMIT_EXCEEDED'],
    ['L1 above the limit', (bytes) => void bytes.writeUInt32BE(0xffffffff, 8), 'LIMIT_EXCEEDED'],
    ['extra data above the limit', (bytes) => void bytes.writeUInt32BE(1025, 36), 'LIMIT_EXCEEDED'],
  ];
  for (const [name, change, code] of cases) {
    const bytes = Buffer.from(good);
    change(bytes);
    const storage = tableImage(bytes);
    const read = () =>
      readSnapshotTable(storage, readQcow2Header(storage), { snapshotsOffset: 0x100000, snapshotCount: 1 });
    t.is((t.throws(read, undefined, name) as { code?: string } | undefined)?.code, code, name);
  }
  const storage = tableImage(good);
  const many = { snapshotsOffset: 0x100000, snapshotCount: 65536 };
  t.throws(() => readSnapshotTable(storage, readQcow2Header(storage), many), { message: /cut off|not a multiple/ });
});
