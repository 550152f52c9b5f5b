import test from 'ava';
import { BlockError, type BlockErrorCode } from '../../../src/errors';
import type { CreateOptions } from '../../../src/formats/format';
import { checkQcow2 } from '../../../src/formats/qcow2/check';
import { createQcow2 } from '../../../src/formats/qcow2/create';
import { readQcow2Header } from '../../../src/formats/qcow2/header';
import { getCount, setCount } from '../../../src/formats/qcow2/refcount-codec';
import { MemoryStorage } from '../../../src/storage/memory';

const MIB = 1024 * 1024;

function create(options: CreateOptions): MemoryStorage {
  const storage = MemoryStorage.create(8 * MIB, 'a.qcow2');
  createQcow2(storage, options);
  return storage;
}

test('createQcow2() makes an image whose header says what was asked for', (t) => {
  const header = readQcow2Header(
    create({
      size: 3 * MIB,
      clusterSize: 32768,
      refcountBits: 8,
      lazyRefcounts: true,
      extendedL2: true,
      compressionType: 'zstd',
      backing: { name: 'base.img', format: 'raw' },
    }),
  );
  t.is(header.virtualSize, 3 * MIB);
  t.is(header.clusterSize, 32768);
  t.is(header.refcountOrder, 3);
  t.is(header.compatible, 1n);
  t.true(header.extendedL2);
  t.is(header.compressionType, 'zstd');
  t.deepEqual(header.backing, { name: 'base.img', format: 'raw' });
});

test('createQcow2() makes consistent images in every combination of cluster size, width and preallocation', (t) => {
  let images = 0;
  for (const clusterSize of [512, 4096, 65536]) {
    for (const refcountBits of [1, 2, 4, 8, 16, 32, 64]) {
      for (const preallocation of ['off', 'metadata', 'full'] as const) {
        const storage = create({ size: MIB, clusterSize, refcountBits, preallocation });
        const result = checkQcow2(readQcow2Header(storage), storage, 'none');
        const title = `${clusterSize} ${refcountBits} ${preallocation}`;
        t.is(result.corruptions + result.leaks + result.checkErrors, 0, title);
        t.is(result.allocatedClusters, preallocation === 'off' ? 0 : MIB / clusterSize, title);
        t.is(result.fragmentedClusters, 0, title);
        images++;
      }
    }
  }
  t.is(images, 63);
});

const REFUSED: [code: BlockErrorCode, options: Partial<CreateOptions>][] = [
  ['INVALID_FORMAT', { clusterSize: 256 }],
  ['INVALID_FORMAT', { clusterSize: 4 * MIB }],
  ['INVALID_FORMAT', { clusterSize: 65537 }],
  ['INVALID_FORMAT', { refcountBits: 3 }],
  ['INVALID_FORMAT', { refcountBits: 0 }],
  ['INVALID_FORMAT', { refcountBits: 128 }],
  ['INVALID_FORMAT', { version: 2, lazyRefcounts: true }],
  ['INVALID_FORMAT', { version: 2, dataFile: { name: 'd', raw: false } }],
  ['INVALID_FORMAT', { extendedL2: true, clusterSize: 8192 }],
  ['INVALID_FORMAT', { preallocation: 'full', backing: { name: 'b' } }],
  ['INVALID_FORMAT', { dataFile: { name: 'd', raw: true }, backing: { name: 'b' } }],
  ['INVALID_FORMAT', { size: 1000 }],
  ['LIMIT_EXCEEDED', { size: -512 }],
  ['LIMIT_EXCEEDED', { size: 2 ** 52, clusterSize: 512 }],
  ['LIMIT_EXCEEDED', { backing: { name: 'x'.repeat(1024) } }],
  ['LIMIT_EXCEEDED', { backing: { name: 'x'.repeat(500) }, clusterSize: 512 }],
];

test('createQcow2() refuses illegal options before it touches what is there', (t) => {
  for (const [code, options] of REFUSED) {
    const storage = MemoryStorage.create(MIB, 'a.qcow2');
    storage.write(0, Buffer.from('precious'), 0, 8, 'create');
    const title = JSON.stringify(options).slice(0, 80);
    const error = t.throws(() => createQcow2(storage, { size: MIB, ...options }), { instanceOf: BlockError }, title);
    t.is(error.code, code, title);
    const bytes = Buffer.alloc(8);
    storage.read(0, bytes, 0, 8);
    t.is(bytes.toString(), 'precious', title);
  }
  t.is(REFUSED.length, 16);
});

test('getCount() and setCount() agree for every width, and leave the neighbours alone', (t) => {
  for (let order = 0; order <= 6; order++) {
    const most = order === 6 ? 2 ** 53 - 1 : 2 ** (2 ** order) - 1;
    const block = Buffer.alloc(512, 0xff);
    for (const value of [0, 1, Math.floor(most / 2), most]) {
      for (let index = 0; index < 8; index++) {
        setCount(block, 0, index, order, index % 2 === 0 ? value : 0);
      }
      for (let index = 0; index < 8; index++) {
        t.is(getCount(block, 0, index, order), index % 2 === 0 ? value : 0, `order ${order}, ${value}`);
      }
    }
  }
});
