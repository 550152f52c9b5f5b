import test from 'ava';
import { BlockError, type BlockErrorCode } from '../../../src/errors';
import type { CreateOptions } from '../../../src/formats/format';
import { createQed } from '../../../src/formats/qed/create';
import { readQedHeader } from '../../../src/formats/qed/header';
import { createRaw } from '../../../src/formats/raw/create';
import { FaultyStorage } from '../../../src/storage/faulty';
import { MemoryStorage } from '../../../src/storage/memory';

const MIB = 1024 * 1024;

function storageWith(content: string): MemoryStorage {
  const storage = MemoryStorage.create(4 * MIB, 'a.qed');
  const bytes = Buffer.from(content);
  storage.write(0, bytes, 0, bytes.length, 'create');
  return storage;
}

function bytesOf(storage: MemoryStorage): Buffer {
  const bytes = Buffer.alloc(storage.size());
  storage.read(0, bytes, 0, bytes.length);
  return bytes;
}

test('createQed() makes an image that readQedHeader() takes, whatever was there', (t) => {
  for (const preallocation of [undefined, 'off', 'falloc', 'full'] as const) {
    const storage = storageWith('x'.repeat(3 * MIB));
    const backing = { name: 'bäse.img', format: 'raw' };
    createQed(storage, {
      size: MIB,
      backing,
      clusterSize: 4096,
      tableSize: 2,
      ...(preallocation === undefined ? {} : { preallocation }),
    });
    const header = readQedHeader(storage);
    t.deepEqual(header.backing, backing);
    t.deepEqual([header.virtualSize, header.clusterSize, header.tableSize, header.dirty], [MIB, 4096, 2, false]);
    t.is(storage.size(), 3 * 4096);
    t.true(
      bytesOf(storage)
        .subarray(64 + 9)
        .every((byte) => byte === 0),
    );
  }
});

test('createQed() writes a backing name of an unknown format without the raw bit', (t) => {
  const storage = storageWith('');
  createQed(storage, { size: 512, backing: { name: 'base.qed', format: 'qed' } });
  t.deepEqual(readQedHeader(storage).backing, { name: 'base.qed' });
});

const REFUSED: [title: string, options: CreateOptions, code: BlockErrorCode][] = [
  ['size not of sectors', { size: 513 }, 'INVALID_FORMAT'],
  ['negative size', { size: -512 }, 'LIMIT_EXCEEDED'],
  ['size above 2^53', { size: 2 ** 53, clusterSize: 0x4000000, tableSize: 16 }, 'LIMIT_EXCEEDED'],
  ['size above what tables address', { size: 2 ** 30 + 512, clusterSize: 4096, tableSize: 1 }, 'LIMIT_EXCEEDED'],
  ['cluster size', { size: 512, clusterSize: 0x3000 }, 'INVALID_FORMAT'],
  ['cluster size 0', { size: 512, clusterSize: 0 }, 'INVALID_FORMAT'],
  ['table size', { size: 512, tableSize: 5 }, 'INVALID_FORMAT'],
  ['long name', { size: 512, backing: { name: 'x'.repeat(1024) } }, 'LIMIT_EXCEEDED'],
  ['long name in bytes', { size: 512, backing: { name: 'ä'.repeat(512) } }, 'LIMIT_EXCEEDED'],
];

test('createQed() refuses options that are not legal before anything changes', (t) => {
  for (const [title, options, code] of REFUSED) {
    const storage = storageWith('precious');
    t.is(t.throws(() => createQed(storage, options), { instanceOf: BlockError })?.code, code, title);
    t.is(bytesOf(storage).toString(), 'precious', title);
  }
});

test('createQed() never leaves what looks like an image when it fails', (t) => {
  const steps = new FaultyStorage(storageWith('old'));
  createQed(steps, { size: MIB, clusterSize: 4096, preallocation: 'full' });
  const count = steps.seen.get('create') ?? 0;
  t.true(count >= 4);
  for (let step = 1; step < count; step++) {
    const below = storageWith('QED\0 old');
    const storage = new FaultyStorage(below);
    storage.arm({ event: 'create', errno: 'ENOSPC', after: step - 1, once: true });
    t.throws(() => createQed(storage, { size: MIB, clusterSize: 4096, preallocation: 'full' }), {
      instanceOf: BlockError,
    });
    if (step > 1) t.not(bytesOf(below).subarray(0, 4).toString('latin1'), 'QED\0', `step ${step}`);
  }
});

test('createRaw() makes a file of zeroes of that size', (t) => {
  for (const preallocation of ['off', 'falloc', 'full'] as const) {
    for (const size of [0, 512, MIB + 512]) {
      const storage = storageWith('x'.repeat(2 * MIB));
      createRaw(storage, { size, preallocation });
      t.is(storage.size(), size);
      t.true(bytesOf(storage).every((byte) => byte === 0));
    }
  }
  t.throws(() => createRaw(storageWith(''), { size: 512, backing: { name: 'x' } }), { code: 'UNSUPPORTED_FEATURE' });
});
