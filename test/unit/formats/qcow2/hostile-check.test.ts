/** Small files that would keep a check busy for hours, or take all memory: what is long is a hole, what is many is one thing named often. */
import test from 'ava';
import { BlockError } from '../../../../src/errors';
import { qcow2Format } from '../../../../src/formats/qcow2/format';
import { readQcow2Header } from '../../../../src/formats/qcow2/header';
import { MemoryStorage } from '../../../../src/storage/memory';
import { PassingStorage } from '../../../../src/storage/passing';
import { alignUp, KIB, MIB } from '../../../../src/units';
import { createInMemory } from '../../../helpers/images';
import { Qcow2Bytes } from '../../../helpers/qcow2-bytes';

/** A file with a hole behind its bytes. */
class LongStorage extends PassingStorage {
  constructor(
    bytes: Buffer,
    private readonly length: number,
  ) {
    const below = MemoryStorage.create(bytes.length, 'a.qcow2');
    below.write(0, bytes, 0, bytes.length, 'create');
    super(below);
  }

  override size(): number {
    return this.length;
  }

  override nextData(offset: number): number {
    return offset >= this.below.size() ? this.length : this.below.nextData(offset);
  }
}

function imageBytes(options: { clusterSize: number; refcountBits?: number }): Qcow2Bytes {
  const storage = createInMemory({ format: 'qcow2', size: 16 * MIB, ...options }, 4 * MIB);
  const bytes = Buffer.alloc(alignUp(storage.size(), options.clusterSize));
  storage.read(0, bytes, 0, bytes.length);
  return new Qcow2Bytes(bytes);
}

function check(storage: LongStorage) {
  return qcow2Format.check?.(readQcow2Header(storage), storage, 'none');
}

test('a check does not walk over a hole of four petabytes', (t) => {
  const image = imageBytes({ clusterSize: 512, refcountBits: 64 });
  const result = check(new LongStorage(image.bytes, 2 ** 52));
  t.is(result?.corruptions, 0);
  t.is(result?.leaks, 0);
});

test('a check finds what is counted behind the refcount table of a long file', (t) => {
  const image = imageBytes({ clusterSize: 64 * KIB });
  const table = image.bytes.length;
  image.bytes = Buffer.concat([image.bytes, Buffer.alloc(64 * KIB)]);
  image.set64(image.l1, Qcow2Bytes.copied(table));
  image.set64(table, Qcow2Bytes.copied(2 ** 48));
  const result = check(new LongStorage(image.bytes, 2 ** 50));
  // The table itself and its cluster have no count; the flags are wrong therefore.
  t.is(result?.corruptions, 4);
});

test('a refcount table that names one block a million times is not compared a million times', (t) => {
  const image = imageBytes({ clusterSize: 64 * KIB });
  const table = image.bytes.length;
  const entries = (8 * MIB) / 8;
  image.bytes = Buffer.concat([image.bytes, Buffer.alloc(8 * MIB)]);
  for (let index = 0; index < entries; index++) image.set64(table + index * 8, image.block());
  image.bytes.fill(1, image.block() + 32 * KIB, image.block() + 64 * KIB);
  image.set64(48, table);
  image.set32(56, (8 * MIB) / (64 * KIB));
  const result = check(new LongStorage(image.bytes, 2 ** 52));
  t.true((result?.corruptions ?? 0) >= entries - 1);
  t.true((result?.leaks ?? 0) < entries);
});

test('entries that are scattered over a long file do not take the memory of the host', (t) => {
  const image = imageBytes({ clusterSize: 64 * KIB });
  const table = image.bytes.length;
  image.bytes = Buffer.concat([image.bytes, Buffer.alloc(64 * KIB)]);
  image.set64(image.l1, Qcow2Bytes.copied(table));
  for (let index = 0; index < 8192; index++) image.set64(table + index * 8, Qcow2Bytes.copied((index + 1) * 2 ** 32));
  const error = t.throws(() => check(new LongStorage(image.bytes, 2 ** 50)), { instanceOf: BlockError });
  t.is(error.code, 'LIMIT_EXCEEDED');
  t.regex(error.message, /limited to 64 MiB of memory/);
});

test('snapshots that all name one large table are refused, however long the file', (t) => {
  const image = imageBytes({ clusterSize: 64 * KIB });
  const count = 1000;
  const snapshots = Buffer.alloc(count * 64);
  const at = image.bytes.length;
  for (let index = 0; index < count; index++) {
    snapshots.writeBigUInt64BE(BigInt(at + 64 * KIB), index * 64);
    snapshots.writeUInt32BE((32 * MIB) / 8, index * 64 + 8);
    snapshots.writeUInt32BE(24, index * 64 + 36);
  }
  image.bytes = Buffer.concat([image.bytes, snapshots]);
  image.set32(60, count);
  image.set64(64, at);
  const error = t.throws(() => check(new LongStorage(image.bytes, 2 ** 50)), { instanceOf: BlockError });
  t.is(error.code, 'CORRUPT_IMAGE');
});
