import test from 'ava';
import { BlockError } from '../../../src/errors';
import { encodeQedHeader, isQed, maxVirtualSize, parseQedHeader, readQedHeader } from '../../../src/formats/qed/header';
import { MemoryStorage } from '../../../src/storage/memory';
import { type HeaderFields, headerBytes, PLAIN } from './qed-bytes';

const MIB = 1024 * 1024;
/** Long enough for every table of the cases. */
const HUGE_FILE = 2 ** 40;

function problemOf(run: () => unknown): { code: string; message: string } | undefined {
  try {
    run();
    return undefined;
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    return { code: error.code, message: error.message };
  }
}

test('parseQedHeader() reads every legal cluster and table size', (t) => {
  let cases = 0;
  for (let clusterSize = 0x1000; clusterSize <= 0x4000000; clusterSize *= 2) {
    for (const tableSize of [1, 2, 4, 8, 16]) {
      const bytes = headerBytes({ clusterSize, tableSize, l1Offset: BigInt(clusterSize) });
      const header = parseQedHeader(bytes, clusterSize * (1 + tableSize), 'a.qed');
      t.is(header.clusterSize, clusterSize);
      t.is(header.tableSize, tableSize);
      t.is(header.l1TableOffset, clusterSize);
      t.is(header.virtualSize, MIB);
      t.deepEqual(encodeQedHeader(header), bytes, 'encodes to the same bytes');
      cases++;
    }
  }
  t.is(cases, 75);
});

const REFUSED: [title: string, fields: Partial<HeaderFields>, code: string, says: string][] = [
  ['magic', { magic: 'QFI\xfb' }, 'INVALID_FORMAT', '514649fb (hex)'],
  ['magic in the wrong byte order', { magic: '\0DEQ' }, 'INVALID_FORMAT', '00444551'],
  [
    'cluster size 0',
    { clusterSize: 0 },
    'INVALID_FORMAT',
    'cluster size 0x0 is not a power of two in [0x1000, 0x4000000]',
  ],
  ['cluster size too small', { clusterSize: 0x800 }, 'INVALID_FORMAT', '0x800'],
  ['cluster size no power of two', { clusterSize: 0x3000 }, 'INVALID_FORMAT', '0x3000'],
  ['cluster size one too many', { clusterSize: 0x10001 }, 'INVALID_FORMAT', '0x10001'],
  ['cluster size too large', { clusterSize: 0x8000000 }, 'INVALID_FORMAT', '0x8000000'],
  ['cluster size with the highest bit', { clusterSize: 0x80000000 }, 'INVALID_FORMAT', '0x80000000'],
  ['table size 0', { tableSize: 0 }, 'INVALID_FORMAT', 'table size 0x0 is not a power of two in [1, 16]'],
  ['table size 3', { tableSize: 3 }, 'INVALID_FORMAT', '0x3'],
  ['table size 32', { tableSize: 32 }, 'INVALID_FORMAT', '0x20'],
  ['table size 2^32-1', { tableSize: 0xffffffff }, 'INVALID_FORMAT', '0xffffffff'],
  ['header size 0', { headerSize: 0 }, 'INVALID_FORMAT', 'header size is 0 clusters'],
  ['header that reaches into the L1 table', { headerSize: 2 }, 'INVALID_FORMAT', 'ends at 0x2000'],
  ['header size 2^32-1', { headerSize: 0xffffffff }, 'INVALID_FORMAT', 'ends at 0xffffffff000'],
  ['L1 offset 0', { l1Offset: 0n }, 'INVALID_FORMAT', 'L1 table offset 0x0 is inside the header'],
  ['L1 offset unaligned', { l1Offset: 0x1008n }, 'INVALID_FORMAT', 'not a multiple of the cluster size 0x1000'],
  ['L1 table at the end of the file', { l1Offset: BigInt(HUGE_FILE) }, 'CORRUPT_IMAGE', 'past the last whole cluster'],
  ['L1 table half outside', { l1Offset: BigInt(HUGE_FILE - 0x1000), tableSize: 2 }, 'CORRUPT_IMAGE', '0x10000001000'],
  ['L1 offset near 2^64', { l1Offset: 0xfffffffffffff000n }, 'CORRUPT_IMAGE', '0xfffffffffffff000'],
  ['size with half a sector', { size: 513n }, 'INVALID_FORMAT', 'image size 0x201 is not a multiple of 512'],
  ['size one sector too large', { size: maxVirtualSize(0x1000, 1) + 512n }, 'INVALID_FORMAT', 'larger than 0x40000000'],
  ['size near 2^64', { size: 0xfffffffffffffe00n }, 'INVALID_FORMAT', '0xfffffffffffffe00'],
  [
    'size above 2^53',
    { size: 2n ** 53n, clusterSize: 0x4000000, tableSize: 16, l1Offset: 0x4000000n },
    'LIMIT_EXCEEDED',
    '0x20000000000000 is larger than 0x1fffffffffffff',
  ],
  ['unknown feature bits', { features: 0x8000000000000018n }, 'UNSUPPORTED_FEATURE', '0x8000000000000018'],
  ['one unknown beside known bits', { features: 0x0an }, 'UNSUPPORTED_FEATURE', 'unknown feature bits 0x8'],
  [
    'name behind the header',
    { features: 1n, nameOffset: 0x1000, nameSize: 4 },
    'INVALID_FORMAT',
    'not inside the header',
  ],
  ['name across the end', { features: 1n, nameOffset: 0xffe, nameSize: 4 }, 'INVALID_FORMAT', 'not inside the header'],
  ['name inside the fields', { features: 1n, nameOffset: 0, nameSize: 64 }, 'INVALID_FORMAT', 'not inside the header'],
  [
    'name range that overflows',
    { features: 1n, nameOffset: 0xffffffff, nameSize: 0xffffffff },
    'INVALID_FORMAT',
    'not inside',
  ],
  ['name of no bytes', { features: 1n, nameOffset: 64, nameSize: 0 }, 'INVALID_FORMAT', 'has 0 bytes'],
  [
    'name of 1024 bytes',
    { features: 1n, nameOffset: 64, nameSize: 1024 },
    'INVALID_FORMAT',
    'has 1024 bytes, allowed are 1 to 1023',
  ],
];

test('parseQedHeader() refuses what is not legal, names it and what is allowed', (t) => {
  for (const [title, fields, code, says] of REFUSED) {
    const problem = problemOf(() => parseQedHeader(headerBytes(fields), HUGE_FILE, 'a "b".qed'));
    t.is(problem?.code, code, title);
    t.true(problem?.message.startsWith('Cannot open QED image "a "b".qed": '), title);
    t.true(problem?.message.includes(says), `${title}: ${problem?.message}`);
    t.false(problem?.message.includes('\n'), title);
  }
  t.is(REFUSED.length, 32);
});

test('parseQedHeader() refuses every shorter piece of a header', (t) => {
  for (let length = 0; length < 64; length++) {
    const problem = problemOf(() => parseQedHeader(headerBytes().subarray(0, length), HUGE_FILE, 'a.qed'));
    t.is(problem?.code, 'INVALID_FORMAT', `${length} bytes`);
  }
});

test('readQedHeader() refuses every shorter piece of a file', (t) => {
  const storage = MemoryStorage.create(0x2000, 'a.qed');
  const bytes = headerBytes();
  storage.write(0, bytes, 0, bytes.length, 'create');
  for (const length of [0, 1, 4, 63, 64, 0xfff, 0x1000, 0x1fff]) {
    const part = MemoryStorage.create(0x2000, 'a.qed');
    part.write(0, bytes, 0, Math.min(length, bytes.length), 'create');
    part.truncate(length, 'create');
    t.truthy(
      problemOf(() => readQedHeader(part)),
      `${length} bytes`,
    );
  }
  storage.truncate(0x2000, 'create');
  t.is(readQedHeader(storage).virtualSize, MIB);
});

test('parseQedHeader() limits the size exactly, also where 64 bits do not suffice', (t) => {
  t.is(maxVirtualSize(0x1000, 1), 1n << 30n);
  t.is(maxVirtualSize(0x10000, 4), 64n << 40n);
  t.is(maxVirtualSize(0x4000000, 16), 2n ** 80n);
  const max = parseQedHeader(headerBytes({ size: 1n << 30n }), HUGE_FILE, 'a.qed');
  t.is(max.virtualSize, 2 ** 30);
  const large = { clusterSize: 0x4000000, tableSize: 16, l1Offset: 0x4000000n, size: 2n ** 53n - 512n };
  t.is(parseQedHeader(headerBytes(large), HUGE_FILE, 'a.qed').virtualSize, 2 ** 53 - 512);
});

test('parseQedHeader() keeps compat and autoclear bits, and knows the dirty bit', (t) => {
  const bytes = headerBytes({ features: 2n, compat: 0xdeadbeef00000001n, autoclear: 0x8000000000000000n });
  const header = parseQedHeader(bytes, HUGE_FILE, 'a.qed');
  t.true(header.dirty);
  t.is(header.compatFeatures, 0xdeadbeef00000001n);
  t.is(header.autoclearFeatures, 0x8000000000000000n);
  t.deepEqual(encodeQedHeader(header), bytes);
  t.deepEqual(
    encodeQedHeader({ ...header, dirty: false }),
    headerBytes({ compat: 0xdeadbeef00000001n, autoclear: 1n << 63n }),
  );
  t.deepEqual(structuredClone(header), header);
});

test('parseQedHeader() takes the backing file and its format', (t) => {
  const named = (features: bigint, name: string) =>
    parseQedHeader(
      headerBytes({ features, nameOffset: 64, nameSize: Buffer.byteLength(name) }, name),
      HUGE_FILE,
      'a.qed',
    );
  t.deepEqual(named(1n, 'base.qed').backing, { name: 'base.qed' });
  t.deepEqual(named(5n, 'bäse.img').backing, { name: 'bäse.img', format: 'raw' });
  t.deepEqual(named(1n, 'base.qed\0rest').backing, { name: 'base.qed' }, 'a name ends at a zero');
  t.is(named(0n, 'base.qed').backing, undefined, 'without the bit the bytes mean nothing');
  t.is(named(1n, 'x'.repeat(1023)).backing?.name.length, 1023);
  t.is(problemOf(() => named(1n, '\0'))?.code, 'INVALID_FORMAT');
  const invalid = headerBytes({ features: 1n, nameOffset: 64, nameSize: 2 }, 'xx');
  invalid.set([0xff, 0xfe], 64);
  t.is(problemOf(() => parseQedHeader(invalid, HUGE_FILE, 'a.qed'))?.code, 'UNSUPPORTED_FEATURE');
});

test('readQedHeader() reads a backing name anywhere in a large header', (t) => {
  const storage = MemoryStorage.create(0x5000, 'a.qed');
  const bytes = headerBytes({ headerSize: 3, l1Offset: 0x3000n, features: 1n, nameOffset: 0x2ffc, nameSize: 4 });
  storage.write(0, bytes, 0, bytes.length, 'create');
  storage.write(0x2ffc, Buffer.from('base'), 0, 4, 'create');
  storage.truncate(0x4000, 'create');
  t.deepEqual(readQedHeader(storage).backing, { name: 'base' });
});

test('parseQedHeader() survives every single wrong byte', (t) => {
  const good = headerBytes({ features: 1n, nameOffset: 64, nameSize: 4 }, 'base');
  let opened = 0;
  let refused = 0;
  for (let at = 0; at < 64; at++) {
    for (const value of [0x00, 0x01, 0x7f, 0x80, 0xff]) {
      const bytes = Buffer.from(good);
      bytes[at] = value;
      const problem = problemOf(() => {
        const header = parseQedHeader(bytes, 0x2000, 'a.qed');
        t.true(Number.isSafeInteger(header.virtualSize) && header.l1TableOffset === 0x1000);
      });
      if (problem === undefined) opened++;
      else refused++;
    }
  }
  t.is(opened + refused, 320);
  t.true(opened > 0 && refused > 0);
});

test('isQed() looks at four bytes and no more', (t) => {
  t.true(isQed(Buffer.from('QED\0')));
  t.false(isQed(Buffer.from('QED')));
  t.false(isQed(Buffer.from('QED\x01')));
  t.false(isQed(new Uint8Array(0)));
  t.is(PLAIN.magic, 'QED\0');
});
