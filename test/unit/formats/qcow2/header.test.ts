/** The qcow2 header: what is refused and why, what is kept, bytes to fields and back. */
import test from 'ava';
import { BlockError, type BlockErrorCode } from '../../../../src/errors';
import type { CreateOptions } from '../../../../src/formats/format';
import { qcow2Format } from '../../../../src/formats/qcow2/format';
import { encodeQcow2Fields, encodeQcow2Header, readQcow2Header } from '../../../../src/formats/qcow2/header';
import { isQcow2 } from '../../../../src/formats/qcow2/layout';
import { MemoryStorage } from '../../../../src/storage/memory';
import { MIB } from '../../../../src/units';

const CAPACITY = 4 * MIB;
const UNKNOWN_EXTENSION = 0x12345678;

function image(options: Partial<CreateOptions> = {}): MemoryStorage {
  const storage = MemoryStorage.create(CAPACITY, 'a.qcow2');
  qcow2Format.create?.(storage, { size: 8 * MIB, ...options });
  return storage;
}

function bytesOf(storage: MemoryStorage): Buffer {
  const bytes = Buffer.alloc(storage.size());
  storage.read(0, bytes, 0, bytes.length);
  return bytes;
}

function storageOf(bytes: Uint8Array): MemoryStorage {
  const storage = MemoryStorage.create(CAPACITY, 'a.qcow2');
  storage.write(0, bytes, 0, bytes.length, 'create');
  return storage;
}

const u32 = (offset: number, value: number) => (bytes: Buffer) => void bytes.writeUInt32BE(value, offset);
const u64 = (offset: number, value: bigint) => (bytes: Buffer) => void bytes.writeBigUInt64BE(value, offset);
const all =
  (...changes: ((bytes: Buffer) => void)[]) =>
  (bytes: Buffer) => {
    for (const change of changes) change(bytes);
  };
/** One extension behind the fields, and nothing after it. */
const extension = (type: number, data: Uint8Array, length = data.length) =>
  all(
    (bytes) => void bytes.fill(0, 112, 4096),
    u32(112, type),
    u32(116, length),
    (bytes) => bytes.set(data, 120),
  );
const text = (words: string) => Buffer.from(words, 'utf8');

type Case = [name: string, change: (bytes: Buffer) => void, code: BlockErrorCode, message: RegExp];

const REFUSED: Case[] = [
  ['another magic', u32(0, 0x514649fa), 'INVALID_FORMAT', /begins with 514649fa/],
  ['version 0', u32(4, 0), 'INVALID_FORMAT', /version 2 or 3/],
  ['version 1', u32(4, 1), 'INVALID_FORMAT', /version 2 or 3/],
  ['version 4', u32(4, 4), 'UNSUPPORTED_FEATURE', /version 4/],
  ['version 2^32 - 1', u32(4, 0xffffffff), 'UNSUPPORTED_FEATURE', /version 4294967295/],
  ['cluster_bits 8', u32(20, 8), 'INVALID_FORMAT', /cluster_bits 8 is not in \[9, 21\]/],
  ['cluster_bits 22', u32(20, 22), 'INVALID_FORMAT', /cluster_bits 22/],
  ['cluster_bits 0', u32(20, 0), 'INVALID_FORMAT', /cluster_bits 0/],
  ['cluster_bits 2^32 - 1', u32(20, 0xffffffff), 'INVALID_FORMAT', /cluster_bits 4294967295/],
  ['size 2^53', u64(24, 2n ** 53n), 'LIMIT_EXCEEDED', /image size 0x20000000000000/],
  ['size 2^64 - 1', u64(24, 2n ** 64n - 1n), 'LIMIT_EXCEEDED', /image size 0xffffffffffffffff/],
  [
    'size larger than its L1 table',
    u64(24, 2n ** 40n),
    'INVALID_FORMAT',
    /L1 table has 1 entries, the image size needs 2048/,
  ],
  ['size larger than any L1 table', u64(24, 2n ** 52n), 'INVALID_FORMAT', /the most its tables can address/],
  ['AES', u32(32, 1), 'UNSUPPORTED_FEATURE', /encrypted \(AES\)/],
  ['LUKS', u32(32, 2), 'UNSUPPORTED_FEATURE', /encrypted \(LUKS\)/],
  ['unknown encryption', u32(32, 77), 'UNSUPPORTED_FEATURE', /encrypted \(0x4d\)/],
  ['no L1 entries', u32(36, 0), 'INVALID_FORMAT', /L1 table has 0 entries/],
  ['an L1 table above the limit', u32(36, 2 ** 22 + 1), 'LIMIT_EXCEEDED', /at most 33554432/],
  ['2^32 - 1 L1 entries', u32(36, 0xffffffff), 'LIMIT_EXCEEDED', /L1 table has 34359738360 bytes/],
  ['an L1 table past the end', u32(36, 2 ** 20), 'CORRUPT_IMAGE', /past the end of the file/],
  ['an L1 table at 0', u64(40, 0n), 'INVALID_FORMAT', /inside the header/],
  ['an unaligned L1 table', u64(40, 0x30200n), 'INVALID_FORMAT', /not a multiple of the cluster size/],
  ['an L1 table far away', u64(40, 0x7fff0000n), 'CORRUPT_IMAGE', /L1 table at 0x7fff0000/],
  ['an L1 table at 2^63', u64(40, 2n ** 63n), 'LIMIT_EXCEEDED', /L1 table offset 0x8000000000000000/],
  ['an L1 table over the refcount table', u64(40, 0x10000n), 'CORRUPT_IMAGE', /overlap/],
  ['a refcount table at 0', u64(48, 0n), 'INVALID_FORMAT', /refcount table offset 0x0 is inside the header/],
  ['an unaligned refcount table', u64(48, 0x10001n), 'INVALID_FORMAT', /refcount table offset 0x10001/],
  ['a refcount table past the end', u64(48, 0x400000n), 'CORRUPT_IMAGE', /refcount table at 0x400000/],
  ['a refcount table at 2^64 - 2^16', u64(48, 2n ** 64n - 65536n), 'LIMIT_EXCEEDED', /refcount table offset/],
  ['a refcount table of 0 clusters', u32(56, 0), 'INVALID_FORMAT', /refcount table has 0 clusters/],
  ['a refcount table above the limit', u32(56, 129), 'LIMIT_EXCEEDED', /at most 8388608/],
  ['a refcount table of 2^32 - 1 clusters', u32(56, 0xffffffff), 'LIMIT_EXCEEDED', /refcount table has/],
  ['65,537 snapshots', u32(60, 65537), 'LIMIT_EXCEEDED', /65537 snapshots/],
  ['snapshots at 0', all(u32(60, 1), u64(64, 0n)), 'INVALID_FORMAT', /snapshot table offset 0x0/],
  ['unaligned snapshots', all(u32(60, 1), u64(64, 0x20008n)), 'INVALID_FORMAT', /snapshot table offset 0x20008/],
  ['snapshots past the end', all(u32(60, 1), u64(64, 0x800000n)), 'CORRUPT_IMAGE', /snapshot table at 0x800000/],
  ['an unknown incompatible bit', u64(72, 1n << 5n), 'UNSUPPORTED_FEATURE', /features: bit 5$/],
  ['all incompatible bits', u64(72, 2n ** 64n - 1n), 'UNSUPPORTED_FEATURE', /bit 5, bit 6, .* bit 63/],
  [
    'an unknown bit that has a name',
    all(
      extension(0x6803f857, Buffer.concat([Buffer.of(0, 9), text('time travel'), Buffer.alloc(35)])),
      u64(72, 1n << 9n),
    ),
    'UNSUPPORTED_FEATURE',
    /"time travel" \(bit 9\)/,
  ],
  [
    'a name that would harm a terminal',
    all(
      extension(0x6803f857, Buffer.concat([Buffer.of(0, 9), text('\u001b[2J'), Buffer.alloc(42)])),
      u64(72, 1n << 9n),
    ),
    'UNSUPPORTED_FEATURE',
    /"\?\[2J" \(bit 9\)/,
  ],
  ['a data file without a name', u64(72, 4n), 'UNSUPPORTED_FEATURE', /does not name one/],
  [
    'a data file with an empty name',
    all(extension(0x44415441, text('')), u64(72, 4n)),
    'UNSUPPORTED_FEATURE',
    /does not name one/,
  ],
  [
    'a data file name that is not UTF-8',
    all(extension(0x44415441, Buffer.of(0xff)), u64(72, 4n)),
    'UNSUPPORTED_FEATURE',
    /data file name ff \(hex\)/,
  ],
  [
    'a data file name of 1,024 bytes',
    all(extension(0x44415441, Buffer.alloc(1024, 97)), u64(72, 4n)),
    'INVALID_FORMAT',
    /data file name has 1024 bytes/,
  ],
  [
    'a raw data file with a backing file',
    all(extension(0x44415441, text('d')), u64(72, 4n), u64(88, 2n), u64(8, 4096n), u32(16, 4), (bytes) =>
      bytes.set(text('base'), 4096),
    ),
    'INVALID_FORMAT',
    /exclude each other/,
  ],
  ['the compression bit alone', u64(72, 8n), 'INVALID_FORMAT', /contradict/],
  ['a compression type alone', (bytes) => void bytes.fill(1, 104, 105), 'INVALID_FORMAT', /contradict/],
  [
    'an unknown compression type',
    all(u64(72, 8n), (bytes) => void bytes.fill(2, 104, 105)),
    'UNSUPPORTED_FEATURE',
    /compression type 2/,
  ],
  ['refcount_order 7', u32(96, 7), 'INVALID_FORMAT', /refcount_order 7/],
  ['refcount_order 2^32 - 1', u32(96, 0xffffffff), 'INVALID_FORMAT', /refcount_order/],
  ['header length 72', u32(100, 72), 'INVALID_FORMAT', /header length 72/],
  ['header length 0', u32(100, 0), 'INVALID_FORMAT', /header length 0/],
  ['an odd header length', u32(100, 109), 'INVALID_FORMAT', /header length 109/],
  ['a header longer than a cluster', u32(100, 65544), 'INVALID_FORMAT', /header length 65544/],
  [
    'an extension that does not fit',
    extension(UNKNOWN_EXTENSION, text(''), 65417),
    'INVALID_FORMAT',
    /65417 bytes, only 65416/,
  ],
  [
    'an extension of 2^32 - 1 bytes',
    extension(UNKNOWN_EXTENSION, text(''), 0xffffffff),
    'INVALID_FORMAT',
    /4294967295 bytes/,
  ],
  ['an encryption header', extension(0x0537be77, Buffer.alloc(16)), 'UNSUPPORTED_FEATURE', /encryption header/],
  ['a backing name of 0 bytes', all(u64(8, 4096n), u32(16, 0)), 'INVALID_FORMAT', /backing file name has 0 bytes/],
  [
    'a backing name of 1,024 bytes',
    all(u64(8, 4096n), u32(16, 1024)),
    'INVALID_FORMAT',
    /backing file name has 1024 bytes/,
  ],
  ['a backing name in the fields', all(u64(8, 64n), u32(16, 4)), 'INVALID_FORMAT', /not inside the header/],
  ['a backing name past the cluster', all(u64(8, 65530n), u32(16, 10)), 'INVALID_FORMAT', /not inside the header/],
  ['a backing name at 2^60', all(u64(8, 2n ** 60n), u32(16, 4)), 'LIMIT_EXCEEDED', /backing file name offset/],
  [
    'a backing name that begins with zero',
    all(u64(8, 4096n), u32(16, 4)),
    'INVALID_FORMAT',
    /backing file name is empty/,
  ],
  [
    'a backing name that is not UTF-8',
    all(u64(8, 4096n), u32(16, 2), u32(4096, 0xc3280000)),
    'UNSUPPORTED_FEATURE',
    /c328 \(hex\)/,
  ],
  [
    'a backing format of 16 bytes',
    all(extension(0xe2792aca, Buffer.alloc(16, 97)), u64(8, 4096n), u32(16, 1), u32(4096, 0x61000000)),
    'INVALID_FORMAT',
    /backing format has 16 bytes/,
  ],
  ['the bitmaps bit alone', u64(88, 1n), 'INVALID_FORMAT', /no bitmaps extension/],
  [
    'a short bitmaps extension',
    all(extension(0x23852875, Buffer.alloc(16)), u64(88, 1n)),
    'INVALID_FORMAT',
    /16 bytes, 24/,
  ],
  ['0 bitmaps', all(extension(0x23852875, Buffer.alloc(24)), u64(88, 1n)), 'INVALID_FORMAT', /counts 0 bitmaps/],
  [
    'a huge bitmap directory',
    all(extension(0x23852875, Buffer.alloc(24, 1)), u64(88, 1n), u32(120, 1)),
    'INVALID_FORMAT',
    /bitmap directory has/,
  ],
];

test('readQcow2Header() refuses what is not legal, by name, and changes nothing', (t) => {
  const good = bytesOf(image());
  t.notThrows(() => readQcow2Header(storageOf(good)));
  for (const [name, change, code, message] of REFUSED) {
    const bytes = Buffer.from(good);
    change(bytes);
    const storage = storageOf(bytes);
    const error = t.throws(() => readQcow2Header(storage), { instanceOf: BlockError }, name);
    t.is(error?.code, code, `${name}: ${error?.message}`);
    t.regex(error?.message ?? '', message, name);
    t.regex(error?.message ?? '', /^Cannot open qcow2 image "a\.qcow2": [^\n]*$/, name);
    t.is(Buffer.compare(bytesOf(storage), bytes), 0, name);
  }
  t.true(REFUSED.length >= 60, `${REFUSED.length} cases`);
});

test('readQcow2Header() refuses files that are shorter than a header', (t) => {
  const good = bytesOf(image());
  for (const length of [0, 1, 3, 7, 8, 71, 103]) {
    const error = t.throws(() => readQcow2Header(storageOf(good.subarray(0, length))), { instanceOf: BlockError });
    t.is(error?.code, 'INVALID_FORMAT', String(length));
  }
});

test('isQcow2() knows versions 2 and later, and not version 1', (t) => {
  const head = Buffer.from('514649fb00000001', 'hex');
  t.deepEqual(
    [1, 2, 3, 4].map((version) => {
      head.writeUInt32BE(version, 4);
      return isQcow2(head);
    }),
    [false, true, true, true],
  );
  t.false(isQcow2(head.subarray(0, 7)));
});

test('encodeQcow2Fields() gives back what was read, for every version, width and feature', (t) => {
  const options: Partial<CreateOptions>[] = [
    {},
    { version: 2 },
    { version: 2, backing: { name: 'base', format: 'raw' } },
    { lazyRefcounts: true, refcountBits: 1 },
    { extendedL2: true, compressionType: 'zstd', refcountBits: 64 },
    { clusterSize: 512, backing: { name: 'b', format: 'qcow2' } },
    { clusterSize: 2 * MIB, refcountBits: 8, size: 0 },
  ];
  for (const one of options) {
    const storage = MemoryStorage.create(10 * MIB, 'a');
    qcow2Format.create?.(storage, { size: 8 * MIB, ...one });
    const header = readQcow2Header(storage);
    const fields = encodeQcow2Fields(header);
    const found = Buffer.alloc(fields.length);
    storage.read(0, found, 0, found.length);
    t.is(fields.toString('hex'), found.toString('hex'), JSON.stringify(one));
    const whole = encodeQcow2Header(header, 'a');
    const start = Buffer.alloc(whole.length);
    storage.read(0, start, 0, start.length);
    t.is(whole.toString('hex'), start.toString('hex'), JSON.stringify(one));
  }
});

test('unknown extensions, unknown fields and compatible bits are kept byte for byte', (t) => {
  const bytes = bytesOf(image());
  // Fields of a later version, then an extension that nobody knows.
  bytes.fill(0, 112, 4096);
  bytes.writeUInt32BE(128, 100);
  bytes.write('laterfieldsHERE!', 112);
  bytes.writeUInt32BE(UNKNOWN_EXTENSION, 128);
  bytes.writeUInt32BE(5, 132);
  bytes.write('abcde', 136);
  bytes.writeBigUInt64BE(0xf0f0n << 16n, 80);
  const storage = storageOf(bytes);
  const header = readQcow2Header(storage);
  t.deepEqual(
    header.extensions.map(({ type, data }) => [type, Buffer.from(data).toString()]),
    [[UNKNOWN_EXTENSION, 'abcde']],
  );
  qcow2Format.prepareWrite?.(header, storage);
  t.is(Buffer.compare(bytesOf(storage), bytes), 0, 'nothing to clear, nothing written');
  const whole = encodeQcow2Header(header, 'a', Uint8Array.from(bytes.subarray(112, 128)));
  t.is(whole.toString('hex'), bytes.subarray(0, whole.length).toString('hex'));
});

test('prepareWrite() clears autoclear bits that it does not know; reading does not', (t) => {
  const bytes = bytesOf(image());
  bytes.writeBigUInt64BE(0x80n | 2n, 88);
  const storage = storageOf(bytes);
  const header = readQcow2Header(storage);
  t.is(Buffer.compare(bytesOf(storage), bytes), 0);
  qcow2Format.prepareWrite?.(header, storage);
  bytes.writeBigUInt64BE(0n, 88);
  t.is(Buffer.compare(bytesOf(storage), bytes), 0);
});

test('prepareWrite() refuses an image that is marked corrupt; it can be read', (t) => {
  const bytes = bytesOf(image());
  bytes.writeBigUInt64BE(2n, 72);
  const storage = storageOf(bytes);
  const header = readQcow2Header(storage);
  t.true(header.corrupt);
  const error = t.throws(() => qcow2Format.prepareWrite?.(header, storage), { instanceOf: BlockError });
  t.is(error?.code, 'CORRUPT_IMAGE');
  t.is(Buffer.compare(bytesOf(storage), bytes), 0);
});
