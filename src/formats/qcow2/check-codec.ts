/** What one entry of an L1 or L2 table says, what is wrong with it, and what a repair makes of it. */
import { COMPRESSED, COPIED, compressedBytes, compressedOffset, offsetOf, ZERO } from './entry';
import type { Qcow2Header } from './layout';

/** Bits 56-61 of a standard L2 entry, and 1-8: reserved. */
const L2_RESERVED_HIGH = 0x3f000000;
const L2_RESERVED_LOW = 0x1fe;
/** Bits 56-62 of an L1 entry, and 0-8: reserved. */
const L1_RESERVED_HIGH = 0x7f000000;
const L1_RESERVED_LOW = 0x1ff;

/** The words of an entry; `zeroes` and `present` are 0 without extended entries. */
export interface RawEntry {
  high: number;
  low: number;
  /** One bit a subcluster: reads zero. */
  zeroes: number;
  /** One bit a subcluster: is in the cluster. */
  present: number;
}

export interface Finding {
  message: string;
  /** Guest data that the entry named is lost: it is to name nothing. */
  drop: boolean;
}

/** An entry, taken apart. */
export interface EntryStatus {
  findings: Finding[];
  /** Bytes of the file that it refers to. */
  range?: { offset: number; length: number };
  compressed: boolean;
  /** Host offset of a standard cluster. */
  offset: number;
  allocated: boolean;
  /** What a repair writes, if the range is inside the file. */
  repaired: RawEntry;
}

/** @param index of the entry, for messages */
export function checkL2Entry(header: Qcow2Header, entry: RawEntry, index: number): EntryStatus {
  return (entry.high & COMPRESSED) !== 0 ? compressedEntry(header, entry, index) : standardEntry(header, entry);
}

/** The entry that names nothing and hides the backing file where the format has a way to say so. */
export function droppedEntry(header: Qcow2Header): RawEntry {
  // Zeroes rather than what the backing file has there: that is data which the guest has overwritten since.
  const hide = header.backing !== undefined && header.version === 3;
  if (header.extendedL2) return { high: 0, low: 0, zeroes: hide ? 0xffffffff : 0, present: 0 };
  return { high: 0, low: hide ? ZERO : 0, zeroes: 0, present: 0 };
}

function compressedEntry(header: Qcow2Header, entry: RawEntry, index: number): EntryStatus {
  const bits = Math.log2(header.clusterSize);
  const copied = (entry.high & COPIED) !== 0;
  // The flag would be taken for the highest bit of the length otherwise.
  const high = (entry.high & ~(COPIED | COMPRESSED)) >>> 0;
  const offset = compressedOffset(high, entry.low, bits);
  const status: EntryStatus = {
    findings: [],
    compressed: true,
    offset,
    allocated: true,
    repaired: { ...entry, high: (entry.high & ~COPIED) >>> 0 },
  };
  const problem =
    header.dataFile !== undefined
      ? 'with data file'
      : entry.zeroes !== 0 || entry.present !== 0
        ? 'with non-zero subcluster allocation bitmap'
        : undefined;
  if (problem !== undefined) {
    status.allocated = false;
    status.findings.push({
      message: `ERROR compressed cluster ${index} ${problem}, entry=0x${wordsOf(entry)}`,
      drop: true,
    });
    return status;
  }
  if (copied) {
    status.findings.push({
      message: `ERROR: coffset=0x${offset.toString(16)}: copied flag must never be set for compressed clusters`,
      drop: false,
    });
  }
  status.range = { offset, length: compressedBytes(high, entry.low, bits) };
  return status;
}

function standardEntry(header: Qcow2Header, entry: RawEntry): EntryStatus {
  const { clusterSize, extendedL2 } = header;
  const offset = offsetOf(entry.high, entry.low);
  // In an external file offset 0 is a place like any other: there the copied flag tells it from "not allocated".
  const allocated = offset !== 0 || (header.dataFile !== undefined && (entry.high & COPIED) !== 0);
  const status: EntryStatus = { findings: [], compressed: false, offset, allocated, repaired: { ...entry } };
  const found = (message: string, drop = false) => status.findings.push({ message, drop });
  if ((entry.high & L2_RESERVED_HIGH) !== 0 || (entry.low & L2_RESERVED_LOW) !== 0) {
    found(`ERROR found l2 entry with reserved bits set: ${wordsOf(entry)}`);
    status.repaired.high = (entry.high & ~L2_RESERVED_HIGH) >>> 0;
    status.repaired.low = (entry.low & ~L2_RESERVED_LOW) >>> 0;
  }
  if (extendedL2 && !allocated && entry.present !== 0) {
    found('ERROR: Unallocated cluster has non-zero subcluster allocation map');
    status.repaired.present = 0;
  }
  if (!allocated) return status;
  if ((entry.present & entry.zeroes) !== 0) {
    found(`ERROR offset=${offset.toString(16)}: Allocated cluster has corrupted subcluster allocation bitmap`);
    // Both cannot be true. The data is there, and nothing else has it.
    status.repaired.zeroes = (entry.zeroes & ~entry.present) >>> 0;
  }
  if (offset % clusterSize !== 0) {
    const hasData = extendedL2 ? entry.present !== 0 : (entry.low & ZERO) === 0;
    const kind = hasData ? 'Data' : 'Preallocated';
    found(`ERROR offset=${offset.toString(16)}: ${kind} cluster is not properly aligned; L2 entry corrupted.`, true);
  }
  if (header.dataFile === undefined) status.range = { offset, length: clusterSize };
  return status;
}

/** The same for an L1 entry, which is not 0. */
export function checkL1Entry(header: Qcow2Header, high: number, low: number): EntryStatus {
  const offset = offsetOf(high, low);
  const status: EntryStatus = {
    findings: [],
    compressed: false,
    offset,
    allocated: true,
    range: { offset, length: header.clusterSize },
    repaired: { high: (high & ~L1_RESERVED_HIGH) >>> 0, low: (low & ~L1_RESERVED_LOW) >>> 0, zeroes: 0, present: 0 },
  };
  if ((high & L1_RESERVED_HIGH) !== 0 || (low & L1_RESERVED_LOW) !== 0) {
    const words = wordsOf({ high, low });
    status.findings.push({ message: `ERROR found L1 entry with reserved bits set: ${words}`, drop: false });
  }
  if (offset % header.clusterSize !== 0) {
    const message = `ERROR l2_offset=${offset.toString(16)}: Table is not cluster aligned; L1 entry corrupted`;
    status.findings.push({ message, drop: true });
  }
  return status;
}

/** Of an entry of a bitmap's table: bits 56-63 and 1-8. */
export function hasReservedBits(high: number, low: number): boolean {
  return (high & 0xff000000) !== 0 || (low & L2_RESERVED_LOW) !== 0;
}

/** C's `%x` of the 64 bits. */
export function wordsOf({ high, low }: { high: number; low: number }): string {
  return high === 0 ? low.toString(16) : high.toString(16) + low.toString(16).padStart(8, '0');
}
