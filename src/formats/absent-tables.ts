/** Runs of L1 entries that name no table: an empty disk of petabytes has a million of them. */
import { SLICE_BYTES, type TableCache } from '../shared/table-cache';

const ENTRY_BYTES = 8;
const SLICE_WORDS = SLICE_BYTES / 4;

/** Part of an L1 table that a lookup has just found in the cache. Offsets in bytes. */
export interface L1Slice {
  slot: number;
  imageId: number;
  offset: number;
  /** Of the entry that was looked up, in the slice. */
  index: number;
  /** In the slice. */
  entries: number;
}

/**
 * Guest bytes from `guest` on, at most `maxLength`, that have no L2 table as far as this slice of L1 says. The entry for
 * `guest` itself is known to be empty. The image's lock is held.
 * @param tableSpan guest bytes of an L2 table
 */
export function lengthWithoutTable(
  cache: TableCache,
  slice: L1Slice,
  guest: number,
  maxLength: number,
  tableSpan: number,
): number {
  const first = tableSpan - (guest % tableSpan);
  const { slot, imageId, offset, entries } = slice;
  const { words32 } = cache;
  const version = cache.version(slot);
  let length = first;
  for (let index = slice.index + 1; index < entries && length < maxLength; index++) {
    const word = slot * SLICE_WORDS + (index * ENTRY_BYTES) / 4;
    if (words32[word] !== 0 || words32[word + 1] !== 0) break;
    length += tableSpan;
  }
  // The slot may have been given to another slice.
  return Math.min(maxLength, cache.unchanged(slot, version, imageId, offset) ? length : first);
}
