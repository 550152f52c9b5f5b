/** qcow images in memory, made byte by byte, so that they can have any geometry and be wrong in every way. */
import { deflateRawSync } from 'node:zlib';
import { MemoryStorage } from '../../../../src/storage/memory';

/** Fields as they are on disk. */
export interface Fields {
  magic: number;
  version: number;
  nameOffset: bigint;
  nameSize: number;
  size: bigint;
  clusterBits: number;
  l2Bits: number;
  crypt: number;
  l1Offset: bigint;
}

/** A legal header: 4 KiB clusters, L2 tables of one cluster, 6 MiB: three L1 entries. */
export const PLAIN: Fields = {
  magic: 0x514649fb,
  version: 1,
  nameOffset: 0n,
  nameSize: 0,
  size: 0x600000n,
  clusterBits: 12,
  l2Bits: 9,
  crypt: 0,
  l1Offset: 48n,
};

export function fieldBytes(fields: Partial<Fields> = {}): Buffer {
  const all = { ...PLAIN, ...fields };
  const bytes = Buffer.alloc(48);
  bytes.writeUInt32BE(all.magic, 0);
  bytes.writeUInt32BE(all.version, 4);
  bytes.writeBigUInt64BE(all.nameOffset, 8);
  bytes.writeUInt32BE(all.nameSize, 16);
  bytes.writeBigUInt64BE(all.size, 24);
  bytes.writeUInt8(all.clusterBits, 32);
  bytes.writeUInt8(all.l2Bits, 33);
  bytes.writeUInt32BE(all.crypt, 36);
  bytes.writeBigUInt64BE(all.l1Offset, 40);
  return bytes;
}

/** An image with these fields and an empty L1 table, `length` bytes long. */
export function imageOf(fields: Partial<Fields>, length: number, capacity = 32 * 1024 * 1024): MemoryStorage {
  const storage = MemoryStorage.create(capacity, 'a.qcow');
  put(storage, 0, fieldBytes(fields));
  storage.truncate(length, 'create');
  return storage;
}

export function put(storage: MemoryStorage, offset: number, bytes: Uint8Array): void {
  storage.write(offset, bytes, 0, bytes.length, 'create');
}

export function putEntry(storage: MemoryStorage, offset: number, entry: bigint): void {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(entry);
  put(storage, offset, bytes);
}

export function entryAt(storage: MemoryStorage, offset: number): bigint {
  const bytes = Buffer.alloc(8);
  storage.read(offset, bytes, 0, 8);
  return bytes.readBigUInt64BE(0);
}

/** Puts a stream there. @returns the entry that names it, in an image with 4 KiB clusters */
export function putStream(storage: MemoryStorage, offset: number, cluster: Uint8Array): bigint {
  const stream = deflateRawSync(cluster, { windowBits: 12 });
  put(storage, offset, stream);
  return streamEntry(offset, stream.length);
}

export function streamEntry(offset: number, length: number): bigint {
  return (1n << 63n) + BigInt(length) * 2n ** 51n + BigInt(offset);
}
