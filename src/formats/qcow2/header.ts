/**
 * The qcow2 header, versions 2 and 3: what is in it, what is legal, bytes to fields and back. Written from the published
 * specification (QEMU's docs/interop/qcow2). Everything on disk is big-endian.
 *
 *     0                                                                                    one cluster
 *     +--------------------+------------------------------+------------------+-----------------+
 *     | 72 or 104+ bytes   | extensions, each padded to 8 | backing name ... | unused          |
 *     +--------------------+------------------------------+------------------+-----------------+
 *
 *     offset size field                              offset size field
 *          0    4 magic "QFI\xfb"                        60    4 nb_snapshots
 *          4    4 version                                64    8 snapshots_offset
 *          8    8 backing_file_offset                 version 3 only:
 *         16    4 backing_file_size                      72    8 incompatible_features
 *         20    4 cluster_bits                           80    8 compatible_features
 *         24    8 size, bytes                            88    8 autoclear_features
 *         32    4 crypt_method                           96    4 refcount_order, log2 of bits
 *         36    4 l1_size, entries                      100    4 header_length
 *         40    8 l1_table_offset                       104    1 compression_type, if header_length > 104
 *         48    8 refcount_table_offset
 *         56    4 refcount_table_clusters
 */
import { BlockError, type BlockErrorCode, hex } from '../../errors';
import type { Storage } from '../../storage/storage';
import {
  EXTENSION_BACKING_FORMAT,
  EXTENSION_BITMAPS,
  EXTENSION_DATA_FILE,
  EXTENSION_ENCRYPTION,
  encodeExtensions,
  type FeatureName,
  parseBitmapsExtension,
  parseExtensions,
  parseFeatureNames,
  parseText,
} from './extensions';
import {
  AUTOCLEAR_BITMAPS,
  AUTOCLEAR_DATA_FILE_RAW,
  BACKING_FORMAT_MAX,
  BACKING_NAME_MAX,
  COMPATIBLE_LAZY_REFCOUNTS,
  COMPRESSION_TYPES,
  DATA_FILE_NAME_MAX,
  DEFAULT_REFCOUNT_ORDER,
  EXTENDED_L2_MIN_CLUSTER,
  INCOMPATIBLE_COMPRESSION,
  INCOMPATIBLE_CORRUPT,
  INCOMPATIBLE_DATA_FILE,
  INCOMPATIBLE_DIRTY,
  INCOMPATIBLE_EXTENDED_L2,
  INCOMPATIBLE_KNOWN,
  isQcow2,
  KNOWN_HEADER_BYTES,
  MAX_CLUSTER_BITS,
  MAX_REFCOUNT_ORDER,
  MIN_CLUSTER_BITS,
  QCOW2_MAGIC,
  type Qcow2Header,
  REFCOUNT_TABLE_MAX_BYTES,
  SNAPSHOTS_MAX,
  V2_HEADER_BYTES,
  V3_HEADER_BYTES,
} from './layout';
import { checkRefcountTable, checkTables } from './table-places';

/**
 * Reads and validates the header of an image. Changes nothing.
 *
 * @param forRepair the refcount table may be anywhere: a repair makes a new one
 */
export function readQcow2Header(storage: Storage, forRepair = false): Qcow2Header {
  const { path } = storage;
  const fields = Buffer.alloc(KNOWN_HEADER_BYTES);
  const got = storage.read(0, fields, 0, KNOWN_HEADER_BYTES);
  const clusterSize = checkedClusterSize(fields.subarray(0, got), path);
  const cluster = Buffer.alloc(clusterSize);
  storage.read(0, cluster, 0, clusterSize);
  return parseQcow2Header(cluster, storage.size(), path, forRepair);
}

/**
 * The same for bytes in memory.
 *
 * @param cluster the first cluster, zeroes where the file is shorter
 * @param fileSize length of the whole file in bytes: tables must lie inside it
 * @param path for messages
 */
export function parseQcow2Header(cluster: Uint8Array, fileSize: number, path: string, forRepair = false): Qcow2Header {
  const view = Buffer.from(cluster);
  const clusterSize = checkedClusterSize(view, path);
  if (forRepair) forgetAbsurdTable(view, clusterSize);
  if (view.length < clusterSize) refuse(path, 'INVALID_FORMAT', `only ${view.length} bytes of the header are at hand`);
  const header = parseFields(view, clusterSize, path);
  addNames(header, view, path);
  checkFeatures(header, path);
  checkTables(header, fileSize, (code, problem) => refuse(path, code, problem));
  if (!forRepair) checkRefcountTable(header, fileSize, (code, problem) => refuse(path, code, problem));
  return header;
}

/**
 * The fields as bytes: 72 of version 2, at most KNOWN_HEADER_BYTES of version 3. What is behind them in the file (fields of
 * later versions, extensions, the backing name) is not touched when the header is updated with them.
 */
export function encodeQcow2Fields(header: Qcow2Header): Buffer {
  const bytes = Buffer.alloc(header.version === 2 ? V2_HEADER_BYTES : KNOWN_HEADER_BYTES);
  bytes.set(QCOW2_MAGIC, 0);
  bytes.writeUInt32BE(header.version, 4);
  bytes.writeBigUInt64BE(BigInt(header.backingNameOffset), 8);
  bytes.writeUInt32BE(header.backingNameSize, 16);
  bytes.writeUInt32BE(Math.log2(header.clusterSize), 20);
  bytes.writeBigUInt64BE(BigInt(header.virtualSize), 24);
  bytes.writeUInt32BE(0, 32);
  bytes.writeUInt32BE(header.l1Entries, 36);
  bytes.writeBigUInt64BE(BigInt(header.l1TableOffset), 40);
  bytes.writeBigUInt64BE(BigInt(header.refcountTableOffset), 48);
  bytes.writeUInt32BE(header.refcountTableClusters, 56);
  bytes.writeUInt32BE(header.snapshotCount, 60);
  bytes.writeBigUInt64BE(BigInt(header.snapshotsOffset), 64);
  if (header.version === 2) return bytes;
  bytes.writeBigUInt64BE(incompatibleBits(header), 72);
  bytes.writeBigUInt64BE(header.compatible, 80);
  bytes.writeBigUInt64BE(header.autoclear, 88);
  bytes.writeUInt32BE(header.refcountOrder, 96);
  bytes.writeUInt32BE(header.headerLength, 100);
  bytes[104] = COMPRESSION_TYPES.indexOf(header.compressionType);
  return bytes.subarray(0, Math.min(header.headerLength, KNOWN_HEADER_BYTES));
}

/**
 * The header of a new image, and of one whose names change: fields, extensions, backing name. Sets the place of the name
 * in `header`. Throws LIMIT_EXCEEDED when it is more than a cluster.
 *
 * @param unknownFields what the file has behind the fields that we know, up to header_length
 */
export function encodeQcow2Header(header: Qcow2Header, path: string, unknownFields = new Uint8Array(0)): Buffer {
  const extensions = encodeExtensions(header.extensions);
  const name = Buffer.from(header.backing?.name ?? '', 'utf8');
  header.backingNameOffset = name.length === 0 ? 0 : header.headerLength + extensions.length;
  header.backingNameSize = name.length;
  const bytes = Buffer.alloc(header.headerLength);
  const fields = encodeQcow2Fields(header);
  bytes.set(fields);
  bytes.set(unknownFields.subarray(0, header.headerLength - fields.length), fields.length);
  const all = Buffer.concat([bytes, extensions, name]);
  if (all.length > header.clusterSize) {
    throw new BlockError(
      'LIMIT_EXCEEDED',
      `Cannot write the header of qcow2 image "${path}": it needs ${all.length} bytes, a cluster has ${header.clusterSize}`,
      { path },
    );
  }
  return all;
}

export function hasLazyRefcounts(header: Qcow2Header): boolean {
  return (header.compatible & COMPATIBLE_LAZY_REFCOUNTS) !== 0n;
}

/** The autoclear bits that a writer who knows what we know may leave: those whose promise still holds. */
export function autoclearBits(header: Qcow2Header): bigint {
  const kept =
    (header.bitmaps === undefined ? 0n : AUTOCLEAR_BITMAPS) | (header.rawDataFile ? AUTOCLEAR_DATA_FILE_RAW : 0n);
  return header.autoclear & kept;
}

function incompatibleBits(header: Qcow2Header): bigint {
  const kept = header.incompatible & ~(INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT);
  return kept | (header.dirty ? INCOMPATIBLE_DIRTY : 0n) | (header.corrupt ? INCOMPATIBLE_CORRUPT : 0n);
}

/** A refcount table that no file can have, by its place or its size, is lost: a repair finds nothing there. */
function forgetAbsurdTable(view: Buffer, clusterSize: number): void {
  const most = BigInt(Number.MAX_SAFE_INTEGER);
  if (view.readBigUInt64BE(48) <= most && view.readUInt32BE(56) * clusterSize <= REFCOUNT_TABLE_MAX_BYTES) return;
  view.writeBigUInt64BE(0n, 48);
  view.writeUInt32BE(0, 56);
}

function checkedClusterSize(view: Buffer, path: string): number {
  if (!isQcow2(view)) {
    const start = view.length === 0 ? 'nothing' : `${view.subarray(0, 8).toString('hex')} (hex)`;
    refuse(path, 'INVALID_FORMAT', `the file begins with ${start}, not with "QFI\\xfb" and version 2 or 3`);
  }
  const version = view.readUInt32BE(4);
  if (version > 3) refuse(path, 'UNSUPPORTED_FEATURE', `version ${version} is unknown, versions 2 and 3 are supported`);
  const needed = version === 2 ? V2_HEADER_BYTES : V3_HEADER_BYTES;
  if (view.length < needed)
    refuse(path, 'INVALID_FORMAT', `the file has ${view.length} bytes, the header needs ${needed}`);
  const bits = view.readUInt32BE(20);
  if (bits < MIN_CLUSTER_BITS || bits > MAX_CLUSTER_BITS) {
    refuse(path, 'INVALID_FORMAT', `cluster_bits ${bits} is not in [${MIN_CLUSTER_BITS}, ${MAX_CLUSTER_BITS}]`);
  }
  return 2 ** bits;
}

/** Fields of fixed place. Each is bounded before another one is computed from it. */
function parseFields(view: Buffer, clusterSize: number, path: string): Qcow2Header {
  const version = view.readUInt32BE(4) === 2 ? 2 : 3;
  const v3 = version === 3;
  const crypt = view.readUInt32BE(32);
  if (crypt !== 0) {
    const method = crypt === 1 ? 'AES' : crypt === 2 ? 'LUKS' : hex(crypt);
    refuse(path, 'UNSUPPORTED_FEATURE', `it is encrypted (${method}), which is not supported`);
  }
  const headerLength = v3 ? view.readUInt32BE(100) : V2_HEADER_BYTES;
  if (headerLength < (v3 ? V3_HEADER_BYTES : 0) || headerLength > clusterSize || headerLength % 8 !== 0) {
    const allowed = `[${V3_HEADER_BYTES}, ${clusterSize}]`;
    refuse(path, 'INVALID_FORMAT', `header length ${headerLength} is not a multiple of 8 in ${allowed}`);
  }
  const refcountOrder = v3 ? view.readUInt32BE(96) : DEFAULT_REFCOUNT_ORDER;
  if (refcountOrder > MAX_REFCOUNT_ORDER) {
    refuse(path, 'INVALID_FORMAT', `refcount_order ${refcountOrder} is not in [0, ${MAX_REFCOUNT_ORDER}]`);
  }
  const snapshotCount = view.readUInt32BE(60);
  if (snapshotCount > SNAPSHOTS_MAX) {
    refuse(path, 'LIMIT_EXCEEDED', `it has ${snapshotCount} snapshots, at most ${SNAPSHOTS_MAX} are supported`);
  }
  const compression = v3 && headerLength > V3_HEADER_BYTES ? view[V3_HEADER_BYTES] : 0;
  const incompatible = v3 ? view.readBigUInt64BE(72) : 0n;
  const compressionType = COMPRESSION_TYPES[compression];
  // With an unknown incompatible bit the field may mean something else; that bit is reported first.
  if (compressionType === undefined && (incompatible & ~INCOMPATIBLE_KNOWN) === 0n) {
    refuse(
      path,
      'UNSUPPORTED_FEATURE',
      `compression type ${compression} is unknown, 0 (zlib) and 1 (zstd) are supported`,
    );
  }
  return {
    format: 'qcow2',
    version,
    virtualSize: exact(view, 24, 'image size', path),
    clusterSize,
    dirty: (incompatible & INCOMPATIBLE_DIRTY) !== 0n,
    corrupt: (incompatible & INCOMPATIBLE_CORRUPT) !== 0n,
    l1Entries: view.readUInt32BE(36),
    l1TableOffset: exact(view, 40, 'L1 table offset', path),
    refcountTableOffset: exact(view, 48, 'refcount table offset', path),
    refcountTableClusters: view.readUInt32BE(56),
    snapshotCount,
    snapshotsOffset: snapshotCount === 0 ? 0 : exact(view, 64, 'snapshot table offset', path),
    incompatible,
    compatible: v3 ? view.readBigUInt64BE(80) : 0n,
    autoclear: v3 ? view.readBigUInt64BE(88) : 0n,
    refcountOrder,
    headerLength,
    compressionType: compressionType ?? 'zlib',
    extendedL2: (incompatible & INCOMPATIBLE_EXTENDED_L2) !== 0n,
    rawDataFile: false,
    backingNameOffset: exact(view, 8, 'backing file name offset', path),
    backingNameSize: 0,
    extensions: [],
  };
}

/** Extensions and backing name. */
function addNames(header: Qcow2Header, view: Buffer, path: string): void {
  const fail = (problem: string): never => refuse(path, 'INVALID_FORMAT', problem);
  const { backingNameOffset: offset, headerLength, clusterSize } = header;
  if (offset !== 0) {
    const size = view.readUInt32BE(16);
    if (size < 1 || size > BACKING_NAME_MAX) {
      fail(`backing file name has ${size} bytes, allowed are 1 to ${BACKING_NAME_MAX}`);
    }
    if (offset < headerLength || offset + size > clusterSize) {
      const allowed = `[${hex(headerLength)}, ${hex(clusterSize)})`;
      fail(`backing file name at ${hex(offset)}, ${size} bytes, is not inside the header ${allowed}`);
    }
    const name = requiredText(view.subarray(offset, offset + size), 'backing file name', path);
    header.backing = { name };
    header.backingNameSize = size;
  }
  header.extensions = parseExtensions(view.subarray(headerLength, offset === 0 ? clusterSize : offset), fail);
  for (const { type, data } of header.extensions) {
    if (type === EXTENSION_BACKING_FORMAT && header.backing !== undefined && data.length > 0) {
      if (data.length > BACKING_FORMAT_MAX)
        fail(`backing format has ${data.length} bytes, allowed are ${BACKING_FORMAT_MAX}`);
      header.backing.format = requiredText(data, 'backing format', path);
    } else if (type === EXTENSION_ENCRYPTION) {
      refuse(path, 'UNSUPPORTED_FEATURE', 'it has an encryption header but says that it is not encrypted');
    }
  }
}

/** Feature bits, and what they demand of the extensions. */
function checkFeatures(header: Qcow2Header, path: string): void {
  const fail = (problem: string): never => refuse(path, 'INVALID_FORMAT', problem);
  const { incompatible, autoclear, extensions, clusterSize } = header;
  const unknown = incompatible & ~INCOMPATIBLE_KNOWN;
  if (unknown !== 0n) {
    refuse(
      path,
      'UNSUPPORTED_FEATURE',
      `unknown incompatible features: ${namesOf(unknown, parseFeatureNames(extensions))}`,
    );
  }
  if ((header.compressionType !== 'zlib') !== ((incompatible & INCOMPATIBLE_COMPRESSION) !== 0n)) {
    fail(
      `compression type ${header.compressionType} and incompatible feature bits ${hex(incompatible)} contradict each other`,
    );
  }
  if (header.extendedL2 && clusterSize < EXTENDED_L2_MIN_CLUSTER) {
    fail(
      `extended L2 entries need clusters of at least ${hex(EXTENDED_L2_MIN_CLUSTER)}, they have ${hex(clusterSize)}`,
    );
  }
  const hasDataFile = (incompatible & INCOMPATIBLE_DATA_FILE) !== 0n;
  if (hasDataFile) {
    const data = extensions.find(({ type }) => type === EXTENSION_DATA_FILE)?.data;
    if (data === undefined || data.length === 0) {
      refuse(path, 'UNSUPPORTED_FEATURE', 'it needs an external data file and does not name one');
    }
    if (data.length > DATA_FILE_NAME_MAX) {
      fail(`data file name has ${data.length} bytes, allowed are 1 to ${DATA_FILE_NAME_MAX}`);
    }
    header.dataFile = { name: requiredText(data, 'data file name', path) };
    header.rawDataFile = (autoclear & AUTOCLEAR_DATA_FILE_RAW) !== 0n;
    // Whoever writes the data file directly knows nothing of the backing file, which would show through.
    if (header.rawDataFile && header.backing !== undefined)
      fail('a raw data file and a backing file exclude each other');
  }
  const bitmaps = extensions.find(({ type }) => type === EXTENSION_BITMAPS);
  if ((autoclear & AUTOCLEAR_BITMAPS) === 0n) return;
  if (bitmaps === undefined) fail('the bitmaps bit is set, but there is no bitmaps extension');
  else header.bitmaps = parseBitmapsExtension(bitmaps.data, fail);
}

function namesOf(bits: bigint, names: readonly FeatureName[]): string {
  const words: string[] = [];
  for (let bit = 0; bit < 64; bit++) {
    if (((bits >> BigInt(bit)) & 1n) === 0n) continue;
    const name = names.find((candidate) => candidate.kind === 'incompatible' && candidate.bit === bit)?.name;
    words.push(name === undefined ? `bit ${bit}` : `"${name}" (bit ${bit})`);
  }
  return words.join(', ');
}

/** A 64-bit field as a number. Offsets are plain numbers everywhere below, exact up to 2^53 - 1 (8 PiB); ours. */
function exact(view: Buffer, at: number, name: string, path: string): number {
  const value = view.readBigUInt64BE(at);
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
    const most = hex(Number.MAX_SAFE_INTEGER);
    refuse(path, 'LIMIT_EXCEEDED', `${name} ${hex(value)} is larger than ${most}, the most that is supported`);
  }
  return Number(value);
}

function requiredText(bytes: Uint8Array, what: string, path: string): string {
  const text = parseText(bytes);
  if (text === undefined) {
    refuse(path, 'UNSUPPORTED_FEATURE', `${what} ${Buffer.from(bytes).toString('hex')} (hex) is not UTF-8`);
  }
  if (text === '') refuse(path, 'INVALID_FORMAT', `${what} is empty`);
  return text;
}

function refuse(path: string, code: BlockErrorCode, problem: string): never {
  throw new BlockError(code, `Cannot open qcow2 image "${path}": ${problem}`, { path });
}
