/**
 * The table of internal snapshots: entries of different lengths, one behind the other, each padded to 8 bytes.
 *
 *      0  8 offset of its L1 table          24  8 guest clock, nanoseconds
 *      8  4 entries of that                 32  4 size of the VM state, bytes (older images)
 *     12  2 length of the id                36  4 length of the extra data
 *     14  2 length of the name              40    extra data: 8 VM state size, 8 disk size, 8 icount, unknown
 *     16  4 date, seconds                         then id, name, padding
 *     20  4 date, nanoseconds
 */
import { BlockError, type BlockErrorCode, hex } from '../../errors';
import type { Storage } from '../../storage/storage';
import { alignUp, KIB } from '../../units';
import { L1_MAX_BYTES, maxVirtualSize, type Qcow2Header, SNAPSHOTS_MAX } from './layout';

const ENTRY_BYTES = 40;
/** Extra data that we know, bytes. */
const KNOWN_EXTRA_BYTES = 24;
/** QEMU's limit and ours. */
const EXTRA_MAX = 1024;
/** Bytes of the whole table; QEMU's limit and ours. */
export const SNAPSHOT_TABLE_MAX = SNAPSHOTS_MAX * KIB;
/** Bytes read at once. */
const CHUNK = 64 * KIB;
/** Said by an icount field for "none". */
const NO_ICOUNT = 0xffff_ffff_ffff_ffffn;

/** One snapshot; plain data. */
export interface Qcow2Snapshot {
  /** Unique in the image by QEMU's custom, not by the format. */
  id: string;
  name: string;
  /** The same as on disk: they need not be UTF-8. */
  idBytes: Uint8Array;
  nameBytes: Uint8Array;
  l1Offset: number;
  l1Entries: number;
  dateSeconds: number;
  dateNanoseconds: number;
  /** Nanoseconds that the guest had run. */
  vmClock: bigint;
  /** Bytes; 0: without. It lies behind the disk in the snapshot's own tables. */
  vmStateSize: number;
  /** Bytes of the disk as it was; that of the image for entries that do not say. */
  virtualSize: number;
  icount?: bigint;
  /** The extra data as it is on disk, known fields and others. */
  extra: Uint8Array;
  /** Why it can be listed, renamed and deleted, but not read: its sizes, which are not exact here, are larger than we support. */
  unreadable?: string;
}

/** Reads and validates the table that the header names, or a newer one at another place. */
export function readSnapshotTable(
  storage: Storage,
  header: Qcow2Header,
  table: { snapshotsOffset: number; snapshotCount: number } = header,
): Qcow2Snapshot[] {
  return readSnapshots(storage, header, table).snapshots;
}

/** The same with its length in bytes, for whoever replaces it. */
export function readSnapshots(
  storage: Storage,
  header: Qcow2Header,
  table: { snapshotsOffset: number; snapshotCount: number },
): { snapshots: Qcow2Snapshot[]; length: number } {
  const reader = new Reader(storage, table.snapshotsOffset);
  const snapshots: Qcow2Snapshot[] = [];
  for (let i = 0; i < table.snapshotCount; i++) snapshots.push(readSnapshot(reader, i, storage, header));
  return { snapshots, length: reader.position };
}

/** The table as bytes. */
export function encodeSnapshotTable(snapshots: readonly Qcow2Snapshot[]): Buffer {
  return Buffer.concat(snapshots.map(encodeSnapshot));
}

function encodeSnapshot(snapshot: Qcow2Snapshot): Buffer {
  const { idBytes: id, nameBytes: name } = snapshot;
  const extra = Buffer.alloc(Math.max(snapshot.extra.length, 16));
  extra.set(snapshot.extra);
  // What the entry said already stays as it was: it may be more than a number holds.
  if (snapshot.extra.length < 8 || snapshot.unreadable === undefined)
    extra.writeBigUInt64BE(BigInt(snapshot.vmStateSize), 0);
  if (snapshot.extra.length < 16 || snapshot.unreadable === undefined)
    extra.writeBigUInt64BE(BigInt(snapshot.virtualSize), 8);
  if (extra.length >= KNOWN_EXTRA_BYTES) extra.writeBigUInt64BE(snapshot.icount ?? NO_ICOUNT, 16);
  const used = ENTRY_BYTES + extra.length + id.length + name.length;
  const bytes = Buffer.alloc(alignUp(used, 8));
  bytes.writeBigUInt64BE(BigInt(snapshot.l1Offset), 0);
  bytes.writeUInt32BE(snapshot.l1Entries, 8);
  bytes.writeUInt16BE(id.length, 12);
  bytes.writeUInt16BE(name.length, 14);
  bytes.writeUInt32BE(snapshot.dateSeconds, 16);
  bytes.writeUInt32BE(snapshot.dateNanoseconds, 20);
  bytes.writeBigUInt64BE(snapshot.vmClock, 24);
  // The old field cannot hold more; it is ignored where the extra data say it.
  bytes.writeUInt32BE(Math.min(snapshot.vmStateSize, 0xffffffff), 32);
  bytes.writeUInt32BE(extra.length, 36);
  bytes.set(extra, ENTRY_BYTES);
  bytes.set(id, ENTRY_BYTES + extra.length);
  bytes.set(name, ENTRY_BYTES + extra.length + id.length);
  return bytes;
}

function readSnapshot(reader: Reader, index: number, storage: Storage, header: Qcow2Header): Qcow2Snapshot {
  const { path } = storage;
  const refuse = (code: BlockErrorCode, problem: string): never => {
    throw new BlockError(code, `Cannot read the snapshots of qcow2 image "${path}": entry ${index}: ${problem}`, {
      path,
    });
  };
  const fixed = reader.take(ENTRY_BYTES, refuse);
  const extraSize = fixed.readUInt32BE(36);
  if (extraSize > EXTRA_MAX)
    refuse(
      'LIMIT_EXCEEDED',
      `extra data of ${extraSize} bytes, at most ${EXTRA_MAX} are supported; "imagefs check -r all" cuts them`,
    );
  const extra = Uint8Array.from(reader.take(extraSize, refuse));
  const view = Buffer.from(extra.buffer);
  const id = reader.take(fixed.readUInt16BE(12), refuse);
  const name = reader.take(fixed.readUInt16BE(14), refuse);
  reader.align();
  const l1Offset = fixed.readBigUInt64BE(0);
  if (l1Offset > BigInt(Number.MAX_SAFE_INTEGER))
    refuse('LIMIT_EXCEEDED', `L1 table offset ${hex(l1Offset)} is larger than ${hex(Number.MAX_SAFE_INTEGER)}`);
  const snapshot: Qcow2Snapshot = {
    id: id.toString('utf8'),
    name: name.toString('utf8'),
    idBytes: Uint8Array.from(id),
    nameBytes: Uint8Array.from(name),
    l1Offset: Number(l1Offset),
    l1Entries: fixed.readUInt32BE(8),
    dateSeconds: fixed.readUInt32BE(16),
    dateNanoseconds: fixed.readUInt32BE(20),
    vmClock: fixed.readBigUInt64BE(24),
    vmStateSize: extraSize >= 8 ? Number(view.readBigUInt64BE(0)) : fixed.readUInt32BE(32),
    virtualSize: extraSize >= 16 ? Number(view.readBigUInt64BE(8)) : header.virtualSize,
    extra,
  };
  const icount = extraSize >= KNOWN_EXTRA_BYTES ? view.readBigUInt64BE(16) : NO_ICOUNT;
  if (icount !== NO_ICOUNT) snapshot.icount = icount;
  checkSnapshot(snapshot, storage, header, refuse);
  const sizes: [string, bigint, number][] = [
    ['VM state size', extraSize >= 8 ? view.readBigUInt64BE(0) : 0n, Number.MAX_SAFE_INTEGER],
    [
      'disk size',
      extraSize >= 16 ? view.readBigUInt64BE(8) : 0n,
      maxVirtualSize(header.clusterSize, header.extendedL2),
    ],
  ];
  for (const [what, value, most] of sizes) {
    if (value <= BigInt(most)) continue;
    snapshot.unreadable = `${what} ${hex(value)} is larger than ${hex(most)}, the most that is supported`;
  }
  return snapshot;
}

function checkSnapshot(
  snapshot: Qcow2Snapshot,
  storage: Storage,
  header: Qcow2Header,
  refuse: (code: BlockErrorCode, problem: string) => never,
): void {
  const { clusterSize } = header;
  const { l1Offset, l1Entries } = snapshot;
  const l1Bytes = l1Entries * 8;
  if (l1Bytes > L1_MAX_BYTES) {
    refuse('LIMIT_EXCEEDED', `L1 table of ${l1Bytes} bytes, at most ${L1_MAX_BYTES} are supported`);
  }
  if (l1Entries > 0 && (l1Offset % clusterSize !== 0 || l1Offset < clusterSize)) {
    refuse(
      'CORRUPT_IMAGE',
      `L1 table offset ${hex(l1Offset)} is not a multiple of ${hex(clusterSize)} behind the header`,
    );
  }
  if (l1Offset + l1Bytes > alignUp(storage.size(), clusterSize)) {
    refuse('CORRUPT_IMAGE', `L1 table at ${hex(l1Offset)}, ${l1Bytes} bytes, ends past the end of the file`);
  }
}

/** Walks through the table; reads it in pieces, and not past the limit. */
class Reader {
  position = 0;
  private chunk = Buffer.alloc(0);
  private chunkAt = 0;

  constructor(
    private readonly storage: Storage,
    private readonly offset: number,
  ) {}

  take(length: number, refuse: (code: BlockErrorCode, problem: string) => never): Buffer {
    const end = this.position + length;
    if (end > SNAPSHOT_TABLE_MAX) refuse('LIMIT_EXCEEDED', `the table has more than ${SNAPSHOT_TABLE_MAX} bytes`);
    if (end > this.chunkAt + this.chunk.length) {
      this.chunk = Buffer.alloc(Math.max(CHUNK, length));
      this.chunkAt = this.position;
      const got = this.storage.read(this.offset + this.position, this.chunk, 0, this.chunk.length);
      if (got < length) refuse('CORRUPT_IMAGE', 'the table is cut off by the end of the file');
    }
    const from = this.position - this.chunkAt;
    this.position = end;
    return this.chunk.subarray(from, from + length);
  }

  align(): void {
    this.position = alignUp(this.position, 8);
  }
}
