/**
 * The header of qcow version 1: what is in it, what is legal, bytes to fields and back. There is no specification of this
 * version; what is said here was seen in images that QEMU makes. Everything on disk is big-endian.
 *
 *     0                                                          cluster boundary
 *     +--------------------+------------------+-------------------+----------------------------------------------+
 *     | 48 bytes of fields | backing name ... | L1 table          | data clusters and L2 tables, any order       |
 *     +--------------------+------------------+-------------------+----------------------------------------------+
 *
 *     offset size field                              offset size field
 *          0    4 magic "QFI\xfb"                        24    8 size, bytes
 *          4    4 version: 1                             32    1 cluster_bits
 *          8    8 backing_file_offset; 0: none           33    1 l2_bits: log2 of the entries of an L2 table
 *         16    4 backing_file_size, bytes               34    2 unused
 *         20    4 mtime of the backing file; unused      36    4 crypt_method; 0: none, 1: AES
 *                                                        40    8 l1_table_offset, bytes
 *
 * An entry of an L1 or L2 table is a 64-bit byte offset of the L2 table or the data cluster; 0 means not allocated. For
 * compressed clusters see `entry.ts`. The L1 table has as many entries as the size needs.
 */
import { BlockError, type BlockErrorCode, hex } from '../../errors';
import type { Storage } from '../../storage/storage';
import { alignDown, alignUp, divCeil, SECTOR_SIZE } from '../../units';
import type { ImageHeader } from '../format';
import { ENTRY_BYTES } from '../two-level';

/** Bytes `51 46 49 fb`; qcow2 has the same ones, and another version. */
const QCOW_MAGIC = 0x514649fb;
const QCOW_VERSION = 1;
/** Bytes of fields at the start of the file. */
export const QCOW_HEADER_BYTES = 48;

/** Limits of QEMU, for reading: clusters and L2 tables of 512 bytes to 64 KiB. */
export const MIN_CLUSTER_BITS = 9;
export const MAX_CLUSTER_BITS = 16;
export const MIN_L2_BITS = 6;
export const MAX_L2_BITS = 13;
/** Bytes; QEMU's limit for the names of all formats, and ours. */
export const QCOW_BACKING_NAME_MAX = 1023;
/** QEMU's limit: an L1 table is smaller than 2 GiB. */
export const QCOW_L1_ENTRIES_MAX = 0xfffffff;

const CRYPT_NONE = 0;
const CRYPT_AES = 1;

export interface QcowHeader extends ImageHeader {
  clusterBits: number;
  l2Bits: number;
  /** Host offset in bytes, when the image was opened. */
  l1TableOffset: number;
  /** Place of the backing name in the file; 0, 0: none. */
  backingNameOffset: number;
  backingNameSize: number;
  /** Kept as it is. */
  mtime: number;
}

/** Does the file begin with the magic number and version 1? */
export function isQcow(head: Uint8Array): boolean {
  if (head.length < 8) return false;
  const view = Buffer.from(head.buffer, head.byteOffset, head.length);
  return view.readUInt32BE(0) === QCOW_MAGIC && view.readUInt32BE(4) === QCOW_VERSION;
}

/** Guest bytes that one L2 table maps. */
export function qcowTableSpan(geometry: Pick<QcowHeader, 'clusterBits' | 'l2Bits'>): number {
  return 2 ** (geometry.clusterBits + geometry.l2Bits);
}

/** Bytes of the L1 table for a disk of `size` bytes. */
export function qcowL1Bytes(geometry: Pick<QcowHeader, 'clusterBits' | 'l2Bits'>, size: number): number {
  return divCeil(size, qcowTableSpan(geometry)) * ENTRY_BYTES;
}

/** Largest disk of this geometry, bytes. */
export function qcowMaxSize(geometry: Pick<QcowHeader, 'clusterBits' | 'l2Bits'>): number {
  return QCOW_L1_ENTRIES_MAX * qcowTableSpan(geometry);
}

/** Where data and tables may begin: behind fields and name, and behind the L1 table where that follows them. */
export function qcowFirstCluster(header: QcowHeader): number {
  const { clusterSize, l1TableOffset, backingNameOffset, backingNameSize } = header;
  // A name elsewhere in the file is read, and nothing more.
  const nameFollows = backingNameOffset <= QCOW_HEADER_BYTES + SECTOR_SIZE;
  const headerEnd = alignUp(
    Math.max(QCOW_HEADER_BYTES, nameFollows ? backingNameOffset + backingNameSize : 0),
    clusterSize,
  );
  // No cluster fits in between.
  if (l1TableOffset < headerEnd + clusterSize) {
    return Math.max(headerEnd, alignUp(l1TableOffset + qcowL1Bytes(header, header.virtualSize), clusterSize));
  }
  return headerEnd;
}

/** Reads and validates the header of an image. Changes nothing. */
export function readQcowHeader(storage: Storage): QcowHeader {
  const { path } = storage;
  const fields = new Uint8Array(QCOW_HEADER_BYTES);
  const got = storage.read(0, fields, 0, QCOW_HEADER_BYTES);
  const header = parseQcowFields(fields.subarray(0, got), storage.size(), path);
  if (header.backingNameSize === 0) return header;
  // Bounded by the fields: at most QCOW_BACKING_NAME_MAX bytes, inside the file.
  const name = new Uint8Array(header.backingNameSize);
  storage.read(header.backingNameOffset, name, 0, name.length);
  return { ...header, backing: { name: nameOf(name, path) } };
}

/** Everything but the backing name. Each field is bounded before another one is computed from it. */
export function parseQcowFields(bytes: Uint8Array, fileSize: number, path: string): QcowHeader {
  if (!isQcow(bytes)) fail(path, 'INVALID_FORMAT', 'the file does not begin with "QFI\\xfb" and version 1');
  if (bytes.length < QCOW_HEADER_BYTES) {
    fail(path, 'INVALID_FORMAT', `the file has ${bytes.length} bytes, the header needs ${QCOW_HEADER_BYTES}`);
  }
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  const clusterBits = view.readUInt8(32);
  if (clusterBits < MIN_CLUSTER_BITS || clusterBits > MAX_CLUSTER_BITS) {
    fail(path, 'INVALID_FORMAT', `cluster_bits ${clusterBits} is not in [${MIN_CLUSTER_BITS}, ${MAX_CLUSTER_BITS}]`);
  }
  const l2Bits = view.readUInt8(33);
  if (l2Bits < MIN_L2_BITS || l2Bits > MAX_L2_BITS) {
    fail(path, 'INVALID_FORMAT', `l2_bits ${l2Bits} is not in [${MIN_L2_BITS}, ${MAX_L2_BITS}]`);
  }
  checkCrypt(view.readUInt32BE(36), path);
  const virtualSize = checkedSize(view.readBigUInt64BE(24), { clusterBits, l2Bits }, path);
  const header: QcowHeader = {
    format: 'qcow',
    virtualSize,
    clusterSize: 2 ** clusterBits,
    clusterBits,
    l2Bits,
    l1TableOffset: 0,
    backingNameOffset: 0,
    backingNameSize: 0,
    mtime: view.readUInt32BE(20),
    dirty: false,
  };
  header.l1TableOffset = checkedL1Offset(view.readBigUInt64BE(40), qcowL1Bytes(header, virtualSize), fileSize, path);
  return { ...header, ...nameRange(view, fileSize, path) };
}

/** The bytes of the fields; the name is not among them. */
export function encodeQcowHeader(header: QcowHeader): Uint8Array {
  const bytes = Buffer.alloc(QCOW_HEADER_BYTES);
  bytes.writeUInt32BE(QCOW_MAGIC, 0);
  bytes.writeUInt32BE(QCOW_VERSION, 4);
  bytes.writeBigUInt64BE(BigInt(header.backingNameOffset), 8);
  bytes.writeUInt32BE(header.backingNameSize, 16);
  bytes.writeUInt32BE(header.mtime, 20);
  bytes.writeBigUInt64BE(BigInt(header.virtualSize), 24);
  bytes.writeUInt8(header.clusterBits, 32);
  bytes.writeUInt8(header.l2Bits, 33);
  bytes.writeUInt32BE(CRYPT_NONE, 36);
  bytes.writeBigUInt64BE(BigInt(header.l1TableOffset), 40);
  return bytes;
}

function checkCrypt(method: number, path: string): void {
  if (method === CRYPT_AES) {
    fail(path, 'UNSUPPORTED_FEATURE', 'it is encrypted with AES, which is not supported');
  }
  if (method !== CRYPT_NONE) fail(path, 'INVALID_FORMAT', `crypt_method ${method} is neither 0 (none) nor 1 (AES)`);
}

function checkedSize(size: bigint, geometry: Pick<QcowHeader, 'clusterBits' | 'l2Bits'>, path: string): number {
  if (size < 2n) fail(path, 'INVALID_FORMAT', `image size ${size} is smaller than 2 bytes`);
  const most = qcowMaxSize(geometry);
  // The L1 table it needs would be larger than QEMU reads. Far below 2^53, so all offsets are exact.
  if (size > BigInt(most)) {
    fail(path, 'LIMIT_EXCEEDED', `image size ${hex(size)} is larger than ${hex(most)}, the most for its tables`);
  }
  // As QEMU has it, the disk is whole sectors.
  return alignDown(Number(size), SECTOR_SIZE);
}

function checkedL1Offset(offset: bigint, length: number, fileSize: number, path: string): number {
  if (offset < BigInt(QCOW_HEADER_BYTES)) {
    fail(path, 'INVALID_FORMAT', `L1 table offset ${hex(offset)} is inside the header, which ends at 0x30`);
  }
  // Ours: no entry lies in two sectors, so none is torn. QEMU's images have it.
  if (offset % BigInt(ENTRY_BYTES) !== 0n) {
    fail(path, 'UNSUPPORTED_FEATURE', `L1 table offset ${hex(offset)} is not a multiple of ${ENTRY_BYTES}`);
  }
  const end = offset + BigInt(length);
  if (end > BigInt(fileSize)) {
    fail(
      path,
      'CORRUPT_IMAGE',
      `L1 table at ${hex(offset)} ends at ${hex(end)}, past the end of the file (${hex(fileSize)})`,
    );
  }
  return Number(offset);
}

function nameRange(
  view: Buffer,
  fileSize: number,
  path: string,
): { backingNameOffset: number; backingNameSize: number } {
  const offset = view.readBigUInt64BE(8);
  const size = view.readUInt32BE(16);
  // QEMU takes either for "no backing file".
  if (offset === 0n || size === 0) return { backingNameOffset: 0, backingNameSize: 0 };
  if (size > QCOW_BACKING_NAME_MAX) {
    fail(path, 'INVALID_FORMAT', `backing file name has ${size} bytes, allowed are 1 to ${QCOW_BACKING_NAME_MAX}`);
  }
  if (offset < BigInt(QCOW_HEADER_BYTES) || offset + BigInt(size) > BigInt(fileSize)) {
    const allowed = `[${hex(QCOW_HEADER_BYTES)}, ${hex(fileSize)})`;
    fail(path, 'INVALID_FORMAT', `backing file name at ${hex(offset)}, ${size} bytes, is not inside ${allowed}`);
  }
  return { backingNameOffset: Number(offset), backingNameSize: size };
}

function nameOf(bytes: Uint8Array, path: string): string {
  // Every reader in C stops at a zero byte.
  const end = bytes.indexOf(0);
  const used = end === -1 ? bytes : bytes.subarray(0, end);
  let name: string;
  try {
    name = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(used);
  } catch {
    fail(path, 'UNSUPPORTED_FEATURE', `backing file name ${Buffer.from(used).toString('hex')} (hex) is not UTF-8`);
  }
  if (name === '') fail(path, 'INVALID_FORMAT', 'backing file name is empty');
  return name;
}

function fail(path: string, code: BlockErrorCode, problem: string): never {
  throw new BlockError(code, `Cannot open qcow image "${path}": ${problem}`, { path });
}
