/**
 * Entries of compressed clusters, as two 32-bit halves. Here, and only here in this folder, bit operators meet parts of
 * offsets: always one half at a time.
 *
 *   compressed:1 | bytes of the stream: cluster_bits | offset, a byte position: the other 63 - cluster_bits
 */

const HIGH = 2 ** 32;
/** In the high half. */
const COMPRESSED = 0x80000000;

export function isCompressed(high: number): boolean {
  return (high & COMPRESSED) !== 0;
}

/** Where the stream begins. May be larger than any file. */
export function compressedOffset(high: number, low: number, clusterBits: number): number {
  return (high & (2 ** (31 - clusterBits) - 1)) * HIGH + low;
}

export function compressedEntry(offset: number, bytes: number, clusterBits: number): { high: number; low: number } {
  return { high: COMPRESSED + bytes * 2 ** (31 - clusterBits) + Math.floor(offset / HIGH), low: offset % HIGH };
}

/** Length of the stream, less than a cluster; 0 is no legal one. */
export function compressedBytes(high: number, clusterBits: number): number {
  return (high >>> (31 - clusterBits)) & (2 ** clusterBits - 1);
}
