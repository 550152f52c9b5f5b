import test from 'ava';
import { BlockError, type BlockErrorCode } from '../../../../src/errors';
import { encodeQcowHeader, isQcow, readQcowHeader } from '../../../../src/formats/qcow/header';
import { formatByName, probeFormat } from '../../../../src/formats/registry';
import { MemoryStorage } from '../../../../src/storage/memory';
import { type Fields, fieldBytes, imageOf, put } from './images';

const LENGTH = 8192;

test('readQcowHeader() gives every field, and encodeQcowHeader() gives the bytes back', (t) => {
  const fields = { nameOffset: 48n, nameSize: 5, l1Offset: 56n, clusterBits: 9, l2Bits: 12, size: 0x500200n };
  const storage = imageOf(fields, LENGTH);
  put(storage, 20, Buffer.from([1, 2, 3, 4]));
  put(storage, 48, Buffer.from('a.raw'));
  const header = readQcowHeader(storage);
  t.like(header, {
    format: 'qcow',
    virtualSize: 0x500200,
    clusterSize: 512,
    l2Bits: 12,
    l1TableOffset: 56,
    dirty: false,
  });
  t.deepEqual(header.backing, { name: 'a.raw' });
  const bytes = Buffer.alloc(48);
  storage.read(0, bytes, 0, 48);
  t.deepEqual(Buffer.from(encodeQcowHeader(header)), bytes);
});

test('probing tells version 1 from qcow2, and from short files', (t) => {
  t.is(probeFormat(imageOf({}, LENGTH)).name, 'qcow');
  t.is(probeFormat(imageOf({ version: 2 }, LENGTH)).name, 'qcow2');
  t.is(probeFormat(imageOf({ version: 0 }, LENGTH)).name, 'raw');
  t.false(isQcow(fieldBytes().subarray(0, 7)));
  t.true(isQcow(fieldBytes().subarray(0, 8)));
});

const REFUSED: [fields: Partial<Fields>, code: BlockErrorCode, words: RegExp][] = [
  [{ magic: 0x514649fc }, 'INVALID_FORMAT', /QFI/],
  [{ version: 2 }, 'INVALID_FORMAT', /version 1/],
  [{ clusterBits: 8 }, 'INVALID_FORMAT', /cluster_bits 8 .*\[9, 16\]/],
  [{ clusterBits: 17 }, 'INVALID_FORMAT', /cluster_bits 17/],
  [{ clusterBits: 255 }, 'INVALID_FORMAT', /cluster_bits 255/],
  [{ l2Bits: 5 }, 'INVALID_FORMAT', /l2_bits 5 .*\[6, 13\]/],
  [{ l2Bits: 14 }, 'INVALID_FORMAT', /l2_bits 14/],
  [{ crypt: 1 }, 'UNSUPPORTED_FEATURE', /AES/],
  [{ crypt: 2 }, 'INVALID_FORMAT', /crypt_method 2/],
  [{ size: 0n }, 'INVALID_FORMAT', /image size 0/],
  [{ size: 1n }, 'INVALID_FORMAT', /image size 1/],
  [{ size: 2n ** 64n - 1n }, 'LIMIT_EXCEEDED', /0xffffffffffffffff/],
  [{ size: 2n ** 49n }, 'LIMIT_EXCEEDED', /0x2000000000000/],
  [{ size: 2n ** 40n }, 'CORRUPT_IMAGE', /L1 table at 0x30 ends at 0x400030/],
  [{ l1Offset: 0n }, 'INVALID_FORMAT', /L1 table offset 0x0/],
  [{ l1Offset: 40n }, 'INVALID_FORMAT', /inside the header/],
  [{ l1Offset: 52n }, 'UNSUPPORTED_FEATURE', /multiple of 8/],
  [{ l1Offset: 8176n }, 'CORRUPT_IMAGE', /past the end of the file/],
  [{ l1Offset: 2n ** 64n - 8n }, 'CORRUPT_IMAGE', /past the end of the file/],
  [{ nameOffset: 48n, nameSize: 1024 }, 'INVALID_FORMAT', /1024 bytes, allowed are 1 to 1023/],
  [{ nameOffset: 48n, nameSize: 0xffffffff }, 'INVALID_FORMAT', /4294967295 bytes/],
  [{ nameOffset: 8n, nameSize: 10 }, 'INVALID_FORMAT', /is not inside \[0x30, 0x2000\)/],
  [{ nameOffset: 8190n, nameSize: 10 }, 'INVALID_FORMAT', /is not inside/],
  [{ nameOffset: 2n ** 64n - 4n, nameSize: 10 }, 'INVALID_FORMAT', /is not inside/],
  [{ nameOffset: 64n, nameSize: 10, l1Offset: 4096n }, 'INVALID_FORMAT', /name is empty/],
];

test('readQcowHeader() bounds every field: one line with the name, the value and what is allowed', (t) => {
  for (const [fields, code, words] of REFUSED) {
    const storage = imageOf(fields, LENGTH);
    const error = t.throws(() => readQcowHeader(storage), { instanceOf: BlockError }, String(words));
    t.is(error?.code, code, String(words));
    t.regex(error?.message ?? '', words);
    t.regex(error?.message ?? '', /^Cannot open qcow image "a\.qcow": [^\n]+$/);
  }
  t.is(REFUSED.length, 25);
});

test('readQcowHeader() refuses every truncated header, and survives random ones', (t) => {
  for (let length = 0; length < 48; length++) {
    const storage = MemoryStorage.create(4096, 'a.qcow');
    put(storage, 0, fieldBytes().subarray(0, length));
    t.throws(() => readQcowHeader(storage), { instanceOf: BlockError });
  }
  let state = 1;
  for (let round = 0; round < 2000; round++) {
    const storage = imageOf({}, LENGTH);
    const bytes = fieldBytes();
    for (let i = 0; i < 3; i++) {
      state = (state * 1103515245 + 12345) % 2147483648;
      bytes[8 + (state % 40)] = Math.floor(state / 65536) % 256;
    }
    put(storage, 0, bytes);
    try {
      readQcowHeader(storage);
    } catch (error) {
      if (!(error instanceof BlockError)) t.fail(`${bytes.toString('hex')}: ${error}`);
    }
  }
});

test('a name that is not UTF-8 is refused; sizes are cut to whole sectors; a name of no bytes is none', (t) => {
  const storage = imageOf({ nameOffset: 48n, nameSize: 4, l1Offset: 56n }, LENGTH);
  put(storage, 48, Buffer.from([0x61, 0xff, 0xfe, 0x62]));
  t.is(t.throws(() => readQcowHeader(storage), { instanceOf: BlockError })?.code, 'UNSUPPORTED_FEATURE');
  t.is(readQcowHeader(imageOf({ size: 1535n }, LENGTH)).virtualSize, 1024);
  t.is(readQcowHeader(imageOf({ nameOffset: 4000n, nameSize: 0 }, LENGTH)).backing, undefined);
});

test('create() checks its options before it changes a byte', (t) => {
  const create = formatByName('qcow').create;
  const storage = MemoryStorage.create(4096, 'a.qcow');
  put(storage, 0, Buffer.from('old'));
  for (const options of [
    { size: 0 },
    { size: -512 },
    { size: 513 },
    { size: 2 ** 50 },
    { size: 512, clusterSize: 256 },
    { size: 512, clusterSize: 131072 },
    { size: 512, clusterSize: 3000 },
    { size: 512, backing: { name: 'x'.repeat(1024) } },
  ]) {
    t.throws(() => create?.(storage, options), {
      instanceOf: BlockError,
      message: /^Cannot create qcow image "a\.qcow"/,
    });
    t.is(storage.size(), 3);
  }
});
