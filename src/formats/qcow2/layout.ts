/** What a qcow2 header can say: the numbers, limits and bits of the specification, and its fields as plain data. */
import { MIB } from '../../units';
import type { DriverCapabilities } from '../driver';
import type { ImageHeader } from '../format';
import type { BitmapsExtension, FeatureName, HeaderExtension } from './extensions';

export const QCOW2_CAPABILITIES: DriverCapabilities = { clusters: true, backing: true };
/** Bytes `51 46 49 fb`. */
export const QCOW2_MAGIC = Uint8Array.of(0x51, 0x46, 0x49, 0xfb);
/** Bytes of fields of a version 2 header. */
export const V2_HEADER_BYTES = 72;
/** Bytes of fields that every version 3 header has. */
export const V3_HEADER_BYTES = 104;
/** Bytes of fields that we know, and write into new images: with the compression type and its padding. */
export const KNOWN_HEADER_BYTES = 112;

/** log2 of bytes; spec. */
export const MIN_CLUSTER_BITS = 9;
/** log2 of bytes; QEMU's limit and ours: 2 MiB. */
export const MAX_CLUSTER_BITS = 21;
export const DEFAULT_CLUSTER_BITS = 16;
/** Subclusters need at least this cluster, bytes: a subcluster is 512 bytes or more. */
export const EXTENDED_L2_MIN_CLUSTER = 16 * 1024;
/** Bytes of the active L1 table and of a snapshot's; QEMU's limit and ours. */
export const L1_MAX_BYTES = 32 * MIB;
/** Bytes; QEMU's limit and ours. */
export const REFCOUNT_TABLE_MAX_BYTES = 8 * MIB;
/** Bytes; spec. */
export const BACKING_NAME_MAX = 1023;
/** Bytes of the recorded backing format; QEMU's limit and ours. */
export const BACKING_FORMAT_MAX = 15;
/** Bytes of the data file's name; ours, as for backing names. */
export const DATA_FILE_NAME_MAX = 1023;
/** QEMU's limit and ours. */
export const SNAPSHOTS_MAX = 65536;
/** log2 of bits; spec. */
export const MAX_REFCOUNT_ORDER = 6;
/** What version 2 has, and new images get. */
export const DEFAULT_REFCOUNT_ORDER = 4;
/** Host offsets have 56 bits in table entries. */
export const HOST_OFFSET_LIMIT = 2 ** 56;

/** incompatible: refcounts may be wrong, the image was not closed. */
export const INCOMPATIBLE_DIRTY = 0x01n;
/** incompatible: something is known to be wrong; not to be written. */
export const INCOMPATIBLE_CORRUPT = 0x02n;
/** incompatible: guest data lies in another file. */
export const INCOMPATIBLE_DATA_FILE = 0x04n;
/** incompatible: compression_type is not zlib. */
export const INCOMPATIBLE_COMPRESSION = 0x08n;
/** incompatible: L2 entries have 16 bytes and 32 subclusters. */
export const INCOMPATIBLE_EXTENDED_L2 = 0x10n;
export const INCOMPATIBLE_KNOWN = 0x1fn;
/** compatible: refcounts may be written late. */
export const COMPATIBLE_LAZY_REFCOUNTS = 0x01n;
/** autoclear: the bitmaps extension is consistent. */
export const AUTOCLEAR_BITMAPS = 0x01n;
/** autoclear: the data file reads as the disk does. */
export const AUTOCLEAR_DATA_FILE_RAW = 0x02n;

export type CompressionType = 'zlib' | 'zstd';
/** By their number in the header. */
export const COMPRESSION_TYPES: readonly CompressionType[] = ['zlib', 'zstd'];

/** The names that a new image's feature name table has, as QEMU writes them. */
export const FEATURE_NAMES: readonly FeatureName[] = [
  { kind: 'incompatible', bit: 0, name: 'dirty bit' },
  { kind: 'incompatible', bit: 1, name: 'corrupt bit' },
  { kind: 'incompatible', bit: 2, name: 'external data file' },
  { kind: 'incompatible', bit: 3, name: 'compression type' },
  { kind: 'incompatible', bit: 4, name: 'extended L2 entries' },
  { kind: 'compatible', bit: 0, name: 'lazy refcounts' },
  { kind: 'autoclear', bit: 0, name: 'bitmaps' },
  { kind: 'autoclear', bit: 1, name: 'raw external data' },
];

/** Plain data. What changes while the image is open (sizes, places of the tables) is in the ImageState: see `state.ts`. */
export interface Qcow2Header extends ImageHeader {
  version: 2 | 3;
  /** Entries of the active L1 table. */
  l1Entries: number;
  l1TableOffset: number;
  refcountTableOffset: number;
  refcountTableClusters: number;
  snapshotCount: number;
  snapshotsOffset: number;
  /** As read; `dirty` is the authority for the dirty bit. */
  incompatible: bigint;
  /** All bits are kept. */
  compatible: bigint;
  autoclear: bigint;
  /** log2 of the bits of one reference count. */
  refcountOrder: number;
  /** Bytes of fields; may be more than we know. */
  headerLength: number;
  compressionType: CompressionType;
  /** 32 subclusters a cluster. */
  extendedL2: boolean;
  /** The external data file reads as the disk does: offsets there are the guest's. */
  rawDataFile: boolean;
  /** Known to be wrong: not to be written. */
  corrupt: boolean;
  /** Place of the backing name; 0 without one. */
  backingNameOffset: number;
  /** Bytes. */
  backingNameSize: number;
  /** In the order of the file, known ones too. */
  extensions: HeaderExtension[];
  /** Present only when the autoclear bit says that it is consistent. */
  bitmaps?: BitmapsExtension;
}

/** Does the file begin with the magic number and a version that is qcow2's? Version 1 is another format. */
export function isQcow2(head: Uint8Array): boolean {
  if (head.length < 8 || !QCOW2_MAGIC.every((byte, index) => head[index] === byte)) return false;
  return Buffer.from(head.buffer, head.byteOffset, head.length).readUInt32BE(4) >= 2;
}

/** Entries of the L1 table that a disk of this size needs. */
export function l1EntriesFor(size: number, clusterSize: number, extendedL2: boolean): number {
  const entriesPerTable = clusterSize / (extendedL2 ? 16 : 8);
  // Two divisions: the span of one L2 table is at most 2^39, exact.
  return Math.ceil(size / (entriesPerTable * clusterSize));
}

/** Largest disk that an L1 table of L1_MAX_BYTES describes, bytes, as far as numbers are exact. */
export function maxVirtualSize(clusterSize: number, extendedL2: boolean): number {
  const span = (clusterSize / (extendedL2 ? 16 : 8)) * clusterSize;
  return Math.min((L1_MAX_BYTES / 8) * span, Number.MAX_SAFE_INTEGER);
}
