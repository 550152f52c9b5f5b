/**
 * Entries of the L1 and L2 tables. Entries are 64-bit big-endian; they are looked at as two 32-bit halves, which the cache
 * holds as raw bytes. Here, and only here in this folder, bit operators meet parts of offsets: always one half at a time.
 *
 *   L1          copied:1 reserved:7 | offset of the L2 table: bits 9-55 | reserved:9
 *   L2          copied:1 compressed:1 ...
 *   standard    ... reserved:6 | offset of the cluster: bits 9-55 | reserved:8 | zero:1
 *   compressed  ... additional sectors | offset, a byte position; the border between them depends on the cluster size
 *   extended L2 a second entry follows: 32 bits "subcluster reads zero", 32 bits "subcluster is allocated"
 *
 * "Compressed?" is asked before any other bit: the others mean something else then.
 */

const HIGH = 2 ** 32;
/** In the high half. */
export const COPIED = 0x80000000;
/** In the high half. */
export const COMPRESSED = 0x40000000;
/** In the low half. */
export const ZERO = 1;
/** Subclusters of a cluster with extended entries. */
export const SUBCLUSTERS = 32;
const SECTOR = 512;

/** Big-endian bytes that a little-endian word holds, and back. */
export function swap(word: number): number {
  return ((word << 24) | ((word & 0xff00) << 8) | ((word >>> 8) & 0xff00) | (word >>> 24)) >>> 0;
}

/** Nobody else refers to what it names: it may be written in place. */
export function isCopied(high: number): boolean {
  return (high & COPIED) !== 0;
}

/** First byte of an entry (the highest on disk) with the copied flag as given. */
export function withCopied(byte: number, copied: boolean): number {
  return copied ? byte | 0x80 : byte & 0x7f;
}

export function isCompressed(high: number): boolean {
  return (high & COMPRESSED) !== 0;
}

/** Of a standard entry. */
export function isZero(low: number): boolean {
  return (low & ZERO) !== 0;
}

/** Is the offset of a standard entry another one than 0? */
export function namesCluster(high: number, low: number): boolean {
  return ((high & 0x00ffffff) | (low & 0xfffffe00)) !== 0;
}

/** Bits 9 to 55. May be larger than any file: compare it before it is used. */
export function offsetOf(high: number, low: number): number {
  return (high & 0x00ffffff) * HIGH + ((low & 0xfffffe00) >>> 0);
}

export function highOf(offset: number): number {
  return Math.floor(offset / HIGH);
}

export function lowOf(offset: number): number {
  return offset % HIGH;
}

/** Where compressed data begins, a byte position. May be larger than any file. */
export function compressedOffset(high: number, low: number, clusterBits: number): number {
  return (high & (2 ** (38 - clusterBits) - 1)) * HIGH + low;
}

/** Bytes from there to the end of its last sector: the stream ends somewhere before that. */
export function compressedBytes(high: number, low: number, clusterBits: number): number {
  const sectors = (high >>> (38 - clusterBits)) & (2 ** (clusterBits - 8) - 1);
  return (sectors + 1) * SECTOR - (low & (SECTOR - 1));
}

/** Entry of compressed data: `offset` is a byte position below `compressedLimit`. */
export function compressedEntry(offset: number, bytes: number, clusterBits: number): { high: number; low: number } {
  const sectors = Math.floor((offset + bytes - 1) / SECTOR) - Math.floor(offset / SECTOR);
  return { high: COMPRESSED + sectors * 2 ** (38 - clusterBits) + highOf(offset), low: lowOf(offset) };
}

/** Offsets of compressed data that an entry can say are below this. */
export function compressedLimit(clusterBits: number): number {
  return 2 ** Math.min(53, 70 - clusterBits);
}

/** How many bits in a row are set from bit `from` on. */
export function runOfBits(pattern: number, from: number): number {
  const inverted = ~(pattern >>> from);
  return inverted === 0 ? SUBCLUSTERS : 31 - Math.clz32(inverted & -inverted);
}

/** Bits `from` up to and without `to`. */
export function bitRange(from: number, to: number): number {
  const below = to === SUBCLUSTERS ? -1 : (1 << to) - 1;
  return (below & ~((1 << from) - 1)) >>> 0;
}

export function bitAt(pattern: number, index: number): boolean {
  return ((pattern >>> index) & 1) !== 0;
}

export function withBits(pattern: number, bits: number): number {
  return (pattern | bits) >>> 0;
}

export function withoutBits(pattern: number, bits: number): number {
  return (pattern & ~bits) >>> 0;
}

export function otherBits(pattern: number): number {
  return ~pattern >>> 0;
}

/** Clears the copied flag of all entries of a table as it is on disk. */
export function clearCopied(table: Uint8Array, entryBytes: number): void {
  for (let at = 0; at < table.length; at += entryBytes) table[at] &= 0x7f;
}
