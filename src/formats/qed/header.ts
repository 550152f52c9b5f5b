/**
 * The QED header: what is in it, what is legal, bytes to fields and back. Written from the published QED specification
 * (QEMU's docs/interop/qed_spec). Everything on disk is little-endian.
 *
 *     0                            header_size clusters             the L1 table is table_size clusters long
 *     +---------------------------------------+-----------------------+----------------------------------------+
 *     | 64 bytes of fields | backing name ... | L1 table (l1_offset)  | data clusters and L2 tables, any order |
 *     +---------------------------------------+-----------------------+----------------------------------------+
 *
 *     offset size field                              offset size field
 *          0    4 magic "QED\0"                          32    8 autoclear_features
 *          4    4 cluster_size, bytes                    40    8 l1_table_offset, bytes
 *          8    4 table_size, clusters                   48    8 image_size, bytes
 *         12    4 header_size, clusters                  56    4 backing_filename_offset, bytes from the file's start
 *         16    8 features                               60    4 backing_filename_size, bytes, no terminating zero
 *         24    8 compat_features
 *
 * An entry of an L1 or L2 table is a 64-bit byte offset of the L2 table or the data cluster; 0 means not allocated and, in
 * an L2 table, 1 means a zero cluster.
 */
import { BlockError, type BlockErrorCode, hex } from '../../errors';
import type { Storage } from '../../storage/storage';
import { isPowerOfTwo, SECTOR_SIZE } from '../../units';
import type { ImageHeader } from '../format';

/** Bytes `51 45 44 00`. */
export const QED_MAGIC = Uint8Array.of(0x51, 0x45, 0x44, 0x00);
/** Bytes of fields at the start of the file; the rest of the header clusters is the backing name and unused. */
export const QED_HEADER_BYTES = 64;
/** Bytes of one table entry. */
export const QED_ENTRY_BYTES = 8;
/** L2 entry: the cluster reads zero and hides the backing file. */
export const QED_ZERO_CLUSTER = 1;

/** Bytes; spec. */
export const QED_MIN_CLUSTER_SIZE = 0x1000;
/** Bytes; spec. */
export const QED_MAX_CLUSTER_SIZE = 0x4000000;
/** Bytes; what qemu-img takes when nobody says. */
export const QED_DEFAULT_CLUSTER_SIZE = 0x10000;
/** Clusters; spec. */
export const QED_MIN_TABLE_SIZE = 1;
/** Clusters; spec. */
export const QED_MAX_TABLE_SIZE = 16;
/** Clusters; what qemu-img takes when nobody says. */
export const QED_DEFAULT_TABLE_SIZE = 4;
/** Bytes, at most one less than this; QEMU's limit for the names of all formats, and ours. */
export const QED_BACKING_NAME_LIMIT = 1024;

/** features: the image has a backing file. */
export const QED_F_BACKING_FILE = 0x01n;
/** features: the last writer did not close the image; tables may disagree with the file until they are checked. */
export const QED_F_NEED_CHECK = 0x02n;
/** features: the backing file is raw whatever its first bytes look like. */
export const QED_F_BACKING_FORMAT_NO_PROBE = 0x04n;
const KNOWN_FEATURES = QED_F_BACKING_FILE | QED_F_NEED_CHECK | QED_F_BACKING_FORMAT_NO_PROBE;

export interface QedHeader extends ImageHeader {
  /** Clusters of each L1 and L2 table. */
  tableSize: number;
  /** Clusters before the first that may hold a table or data. */
  headerSize: number;
  /** As read; `dirty` is the authority for NEED_CHECK. */
  features: bigint;
  /** Bits that whoever does not know them may ignore, and must keep. */
  compatFeatures: bigint;
  /** Bits that whoever does not know them clears before the first write: we know none. */
  autoclearFeatures: bigint;
  /** Host offset in bytes. */
  l1TableOffset: number;
  /** Place of the backing name in the file, as read. Only meaningful with QED_F_BACKING_FILE. */
  backingNameOffset: number;
  backingNameSize: number;
}

/** Does the file begin with the magic number? */
export function isQed(head: Uint8Array): boolean {
  return head.length >= QED_MAGIC.length && QED_MAGIC.every((byte, index) => head[index] === byte);
}

/** Largest legal disk for this geometry, in bytes: every entry of every table in use. Up to 2^80, so never a plain number. */
export function maxVirtualSize(clusterSize: number, tableSize: number): bigint {
  const entries = (BigInt(clusterSize) * BigInt(tableSize)) / BigInt(QED_ENTRY_BYTES);
  return entries * entries * BigInt(clusterSize);
}

/** Why this cluster size is not legal; undefined when it is. */
export function clusterSizeProblem(clusterSize: number): string | undefined {
  if (isPowerOfTwo(clusterSize) && clusterSize >= QED_MIN_CLUSTER_SIZE && clusterSize <= QED_MAX_CLUSTER_SIZE) return;
  return `cluster size ${hex(clusterSize)} is not a power of two in [${hex(QED_MIN_CLUSTER_SIZE)}, ${hex(QED_MAX_CLUSTER_SIZE)}]`;
}

/** Why this table size is not legal; undefined when it is. */
export function tableSizeProblem(tableSize: number): string | undefined {
  if (isPowerOfTwo(tableSize) && tableSize >= QED_MIN_TABLE_SIZE && tableSize <= QED_MAX_TABLE_SIZE) return;
  return `table size ${hex(tableSize)} is not a power of two in [${QED_MIN_TABLE_SIZE}, ${QED_MAX_TABLE_SIZE}] clusters`;
}

/** Reads and validates the header of an image. Changes nothing. */
export function readQedHeader(storage: Storage): QedHeader {
  const fileSize = storage.size();
  const fields = new Uint8Array(QED_HEADER_BYTES);
  const got = storage.read(0, fields, 0, QED_HEADER_BYTES);
  const header = parseFields(fields.subarray(0, got), fileSize, storage.path);
  if ((header.features & QED_F_BACKING_FILE) === 0n) return header;
  // Bounded by parseFields: less than QED_BACKING_NAME_LIMIT bytes, inside the header clusters, those inside the file.
  const name = new Uint8Array(header.backingNameSize);
  storage.read(header.backingNameOffset, name, 0, name.length);
  return withBackingName(header, name, storage.path);
}

/**
 * The same for bytes in memory.
 *
 * @param bytes the start of the file, up to the end of the backing name
 * @param fileSize length of the whole file in bytes: tables must lie inside it
 * @param path for messages
 */
export function parseQedHeader(bytes: Uint8Array, fileSize: number, path: string): QedHeader {
  const header = parseFields(bytes.subarray(0, QED_HEADER_BYTES), fileSize, path);
  if ((header.features & QED_F_BACKING_FILE) === 0n) return header;
  const end = header.backingNameOffset + header.backingNameSize;
  if (end > bytes.length) fail(path, 'INVALID_FORMAT', `backing file name ends at ${hex(end)}, past the bytes at hand`);
  return withBackingName(header, bytes.subarray(header.backingNameOffset, end), path);
}

/**
 * The 64 bytes of fields. NEED_CHECK follows `dirty`, the size follows `virtualSize`; all else is as it was read. What is
 * behind these bytes in the file (the backing name, other people's data) is not ours to touch when the header is updated.
 */
export function encodeQedHeader(header: QedHeader): Buffer {
  const features = header.dirty ? header.features | QED_F_NEED_CHECK : header.features & ~QED_F_NEED_CHECK;
  const bytes = Buffer.alloc(QED_HEADER_BYTES);
  bytes.set(QED_MAGIC, 0);
  bytes.writeUInt32LE(header.clusterSize, 4);
  bytes.writeUInt32LE(header.tableSize, 8);
  bytes.writeUInt32LE(header.headerSize, 12);
  bytes.writeBigUInt64LE(features, 16);
  bytes.writeBigUInt64LE(header.compatFeatures, 24);
  bytes.writeBigUInt64LE(header.autoclearFeatures, 32);
  bytes.writeBigUInt64LE(BigInt(header.l1TableOffset), 40);
  bytes.writeBigUInt64LE(BigInt(header.virtualSize), 48);
  bytes.writeUInt32LE(header.backingNameOffset, 56);
  bytes.writeUInt32LE(header.backingNameSize, 60);
  return bytes;
}

/** Everything but the backing name. Each field is bounded before another one is computed from it. */
function parseFields(bytes: Uint8Array, fileSize: number, path: string): QedHeader {
  if (!isQed(bytes)) fail(path, 'INVALID_FORMAT', `the file begins with ${magicWords(bytes)}, not with "QED\\0"`);
  if (bytes.length < QED_HEADER_BYTES) {
    fail(path, 'INVALID_FORMAT', `the file has ${bytes.length} bytes, the header needs ${QED_HEADER_BYTES}`);
  }
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  const features = view.readBigUInt64LE(16);
  const unknown = features & ~KNOWN_FEATURES;
  if (unknown !== 0n) fail(path, 'UNSUPPORTED_FEATURE', `unknown feature bits ${hex(unknown)}`);

  const clusterSize = view.readUInt32LE(4);
  const tableSize = view.readUInt32LE(8);
  const headerSize = view.readUInt32LE(12);
  const geometryProblem = clusterSizeProblem(clusterSize) ?? tableSizeProblem(tableSize);
  if (geometryProblem !== undefined) fail(path, 'INVALID_FORMAT', geometryProblem);
  // Below 2^32 x 2^26: exact. The L1 check bounds it by the length of the file.
  const headerEnd = headerSize * clusterSize;
  if (headerSize < 1) fail(path, 'INVALID_FORMAT', 'header size is 0 clusters, at least 1 is needed');

  const header: QedHeader = {
    format: 'qed',
    virtualSize: checkedSize(view.readBigUInt64LE(48), clusterSize, tableSize, path),
    clusterSize,
    tableSize,
    headerSize,
    features,
    compatFeatures: view.readBigUInt64LE(24),
    autoclearFeatures: view.readBigUInt64LE(32),
    l1TableOffset: checkedL1Offset(view.readBigUInt64LE(40), headerEnd, clusterSize, tableSize, fileSize, path),
    backingNameOffset: view.readUInt32LE(56),
    backingNameSize: view.readUInt32LE(60),
    dirty: (features & QED_F_NEED_CHECK) !== 0n,
  };
  if ((features & QED_F_BACKING_FILE) !== 0n) checkNameRange(header, headerEnd, path);
  return header;
}

function checkedSize(size: bigint, clusterSize: number, tableSize: number, path: string): number {
  if (size % BigInt(SECTOR_SIZE) !== 0n) {
    fail(path, 'INVALID_FORMAT', `image size ${hex(size)} is not a multiple of ${SECTOR_SIZE}`);
  }
  const max = maxVirtualSize(clusterSize, tableSize);
  if (size > max) {
    fail(path, 'INVALID_FORMAT', `image size ${hex(size)} is larger than ${hex(max)}, the most its tables can address`);
  }
  // Ours: offsets are plain numbers everywhere below, exact up to 2^53 - 1 (8 PiB).
  if (size > BigInt(Number.MAX_SAFE_INTEGER)) {
    fail(
      path,
      'LIMIT_EXCEEDED',
      `image size ${hex(size)} is larger than ${hex(Number.MAX_SAFE_INTEGER)}, the most that is supported`,
    );
  }
  return Number(size);
}

/** The table must lie whole between the header and the end of the file; a trailing part of a cluster does not count. */
function checkedL1Offset(
  offset: bigint,
  headerEnd: number,
  clusterSize: number,
  tableSize: number,
  fileSize: number,
  path: string,
): number {
  if (offset % BigInt(clusterSize) !== 0n) {
    fail(
      path,
      'INVALID_FORMAT',
      `L1 table offset ${hex(offset)} is not a multiple of the cluster size ${hex(clusterSize)}`,
    );
  }
  if (offset < BigInt(headerEnd)) {
    fail(
      path,
      'INVALID_FORMAT',
      `L1 table offset ${hex(offset)} is inside the header, which ends at ${hex(headerEnd)}`,
    );
  }
  const end = offset + BigInt(tableSize) * BigInt(clusterSize);
  const usable = fileSize - (fileSize % clusterSize);
  if (end > BigInt(usable)) {
    fail(
      path,
      'CORRUPT_IMAGE',
      `L1 table at ${hex(offset)} ends at ${hex(end)}, past the last whole cluster of the file (${hex(usable)})`,
    );
  }
  return Number(offset);
}

function checkNameRange(header: QedHeader, headerEnd: number, path: string): void {
  const { backingNameOffset: offset, backingNameSize: size } = header;
  if (offset < QED_HEADER_BYTES || offset + size > headerEnd) {
    const allowed = `[${hex(QED_HEADER_BYTES)}, ${hex(headerEnd)})`;
    fail(
      path,
      'INVALID_FORMAT',
      `backing file name at ${hex(offset)}, ${size} bytes, is not inside the header ${allowed}`,
    );
  }
  if (size < 1 || size >= QED_BACKING_NAME_LIMIT) {
    fail(path, 'INVALID_FORMAT', `backing file name has ${size} bytes, allowed are 1 to ${QED_BACKING_NAME_LIMIT - 1}`);
  }
}

function withBackingName(header: QedHeader, bytes: Uint8Array, path: string): QedHeader {
  // Some writers count the terminating zero; every reader in C stops there.
  const end = bytes.indexOf(0);
  const used = end === -1 ? bytes : bytes.subarray(0, end);
  let name: string;
  try {
    name = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(used);
  } catch {
    fail(path, 'UNSUPPORTED_FEATURE', `backing file name ${Buffer.from(used).toString('hex')} (hex) is not UTF-8`);
  }
  if (name === '') fail(path, 'INVALID_FORMAT', 'backing file name is empty');
  const backing: { name: string; format?: string } = { name };
  if ((header.features & QED_F_BACKING_FORMAT_NO_PROBE) !== 0n) backing.format = 'raw';
  return { ...header, backing };
}

function magicWords(bytes: Uint8Array): string {
  return bytes.length === 0 ? 'nothing' : `${Buffer.from(bytes.subarray(0, 4)).toString('hex')} (hex)`;
}

function fail(path: string, code: BlockErrorCode, problem: string): never {
  throw new BlockError(code, `Cannot open QED image "${path}": ${problem}`, { path });
}
