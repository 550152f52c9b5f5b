/** Small qcow2 images in memory, and what a guest would read from them, by a reader of a few lines. */
import type { CreateOptions } from '../../../src/formats/format';
import { createQcow2 } from '../../../src/formats/qcow2/create';
import { MemoryStorage } from '../../../src/storage/memory';
import { Qcow2Bytes } from '../../helpers/qcow2-bytes';

/** Bytes that an image may grow to. */
export const CAPACITY = 512 * 1024;
const CLUSTER = 512;
const SIZE = 96 * 1024;
const OFFSET = 0x00ff_ffff_ffff_fe00n;

/** A disk of 192 clusters in three L2 tables, all of them with data. */
export function memoryImage(options: Partial<CreateOptions> = {}): Buffer {
  const storage = MemoryStorage.create(CAPACITY, 'a.qcow2');
  createQcow2(storage, { size: SIZE, clusterSize: CLUSTER, preallocation: 'metadata', ...options });
  const bytes = Buffer.alloc(storage.size());
  storage.read(0, bytes, 0, bytes.length);
  const image = new Qcow2Bytes(bytes);
  for (let guest = 0; guest < SIZE / CLUSTER; guest++) {
    const at = image.target(image.l2(Math.floor(guest / 64)) + (guest % 64) * 8);
    bytes.fill(1 + (guest % 250), at, at + CLUSTER);
  }
  return bytes;
}

export function loaded(bytes: Buffer): MemoryStorage {
  const storage = MemoryStorage.create(CAPACITY, 'a.qcow2');
  storage.write(0, bytes, 0, bytes.length, 'create');
  return storage;
}

/** What each cluster of the disk reads, as text; `?` for one that cannot be read. */
export function guestClusters(bytes: Buffer): string[] {
  const image = new Qcow2Bytes(bytes);
  const follow = (at: number): number => Number(image.u64(at) & OFFSET);
  return Array.from({ length: SIZE / CLUSTER }, (_, guest) => {
    const table = follow(image.l1 + Math.floor(guest / 64) * 8);
    if (table === 0 || table + CLUSTER > bytes.length) return '?';
    const cluster = follow(table + (guest % 64) * 8);
    if (cluster === 0 || cluster + CLUSTER > bytes.length) return '?';
    const [first] = bytes.subarray(cluster, cluster + CLUSTER);
    const same = bytes.subarray(cluster, cluster + CLUSTER).every((byte) => byte === first);
    return same ? `${first}` : '?';
  });
}

/** Snapshots that share the active L1 table, at the end of the file; no count is changed. Entries of 64 bytes. */
export function addSnapshots(bytes: Buffer, count: number): Buffer {
  const image = new Qcow2Bytes(bytes);
  const entries = Buffer.alloc(count * 64);
  for (let index = 0; index < count; index++) {
    const at = index * 64;
    entries.writeBigUInt64BE(BigInt(image.l1), at);
    entries.writeUInt32BE(3, at + 8);
    entries.writeUInt16BE(4, at + 12);
    entries.writeUInt16BE(4, at + 14);
    entries.writeUInt32BE(16, at + 36);
    entries.writeBigUInt64BE(BigInt(SIZE), at + 48);
    entries.write(String(index).padStart(4, '0').repeat(2), at + 56, 'latin1');
  }
  image.set32(60, count);
  image.set64(64, bytes.length);
  return Buffer.concat([bytes, entries]);
}
