/**
 * Which cluster lies where: lookups in one L1 table and its L2 tables, through the shared table cache. The active tables
 * and those of every snapshot are looked up by the same code; only the place of the L1 table differs.
 */
import { hex } from '../../errors';
import type { ImageState } from '../../shared/image-state';
import { SLICE_BYTES, type TableCache, type TableLevel, type TableSlice } from '../../shared/table-cache';
import { lengthWithoutTable } from '../absent-tables';
import { type Mapping, TableError } from '../driver';
import {
  bitAt,
  compressedBytes,
  compressedOffset,
  isCompressed,
  isCopied,
  isZero,
  namesCluster,
  offsetOf,
  otherBits,
  runOfBits,
  SUBCLUSTERS,
  swap,
  withBits,
  withoutBits,
} from './entry';
import type { Qcow2Header } from './layout';

/** Slots of the cache are this many 32-bit words apart, also when slices are smaller. */
export const SLICE_WORDS = SLICE_BYTES / 4;
/** An L1 entry: the offset of its table, plus one when nobody shares the table (offsets are multiples of 512). */
export const OWNED = 1;

/** Where an L1 table is. */
export interface L1Place {
  readonly l1Offset: number;
  readonly l1Entries: number;
}

const UNALLOCATED = 0;
const ZERO_PLAIN = 1;
const DATA = 2;
const COMPRESSED_KIND = 3;
const INVALID = 4;
type Kind = typeof UNALLOCATED | typeof ZERO_PLAIN | typeof DATA | typeof COMPRESSED_KIND | typeof INVALID;

export class Qcow2Mapping {
  readonly clusterSize: number;
  readonly clusterBits: number;
  readonly subclusterSize: number;
  readonly entryBytes: number;
  readonly sliceBytes: number;
  readonly entriesPerTable: number;
  readonly entriesPerSlice: number;
  /** Guest bytes that one L2 table maps. */
  readonly tableSpan: number;
  private readonly external: boolean;
  private l1Hint = 0;
  private l2Hint = 0;

  constructor(
    private readonly header: Qcow2Header,
    private readonly path: string,
    private readonly state: ImageState,
    private readonly cache: TableCache,
    private readonly imageId: number,
    private readonly place: L1Place,
  ) {
    this.clusterSize = header.clusterSize;
    this.clusterBits = Math.log2(header.clusterSize);
    this.subclusterSize = header.extendedL2 ? header.clusterSize / SUBCLUSTERS : header.clusterSize;
    this.entryBytes = header.extendedL2 ? 16 : 8;
    this.sliceBytes = Math.min(SLICE_BYTES, header.clusterSize);
    this.entriesPerTable = header.clusterSize / this.entryBytes;
    this.entriesPerSlice = this.sliceBytes / this.entryBytes;
    this.tableSpan = this.entriesPerTable * header.clusterSize;
    this.external = header.dataFile !== undefined;
  }

  /** As `FormatDriver.map`. */
  map(guest: number, maxLength: number): Mapping {
    const { cache, imageId } = this;
    const table = this.l1Entry(guest);
    if (typeof table === 'object') return { kind: 'miss', slice: table };
    if (table === 0) return { kind: 'unallocated', length: this.lengthWithoutTable(guest, maxLength) };
    const owned = table % 2 === OWNED;
    const inSlice = this.indexInSlice(guest);
    const offset = this.sliceOffset(table, guest);
    const slot = cache.find(imageId, offset, this.l2Hint);
    if (slot < 0) return { kind: 'miss', slice: this.slice(offset, 'l2') };
    this.l2Hint = slot;
    const version = cache.version(slot);
    const mapping = this.header.extendedL2
      ? this.subclusters(slot, inSlice, guest, maxLength, owned)
      : this.clusters(slot, inSlice, guest, maxLength, owned);
    // Only now is it certain that the entries belong to this table and not to one that took the slot.
    if (!cache.unchanged(slot, version, imageId, offset)) return { kind: 'miss', slice: this.slice(offset, 'l2') };
    if (typeof mapping === 'string') throw this.corruptEntry('L2', guest, mapping);
    return mapping;
  }

  /** Offset of the L2 table for `guest` plus OWNED, 0 when there is none, or the slice of L1 to load. The lock is held. */
  l1Entry(guest: number): number | TableSlice {
    const { cache, imageId } = this;
    const index = Math.floor(guest / this.tableSpan);
    if (index >= this.place.l1Entries) return 0;
    const inSlice = index % (this.sliceBytes / 8);
    const offset = this.place.l1Offset + (index - inSlice) * 8;
    const slot = cache.find(imageId, offset, this.l1Hint);
    if (slot < 0) return this.slice(offset, 'l1');
    this.l1Hint = slot;
    const version = cache.version(slot);
    const word = slot * SLICE_WORDS + inSlice * 2;
    const high = swap(cache.words32[word]);
    const table = offsetOf(high, swap(cache.words32[word + 1]));
    if (!cache.unchanged(slot, version, imageId, offset)) return this.slice(offset, 'l1');
    if (table === 0) return 0;
    if (!this.isCluster(table)) throw this.corruptEntry('L1', guest, `table offset ${hex(table)}`);
    return isCopied(high) ? table + OWNED : table;
  }

  /** As of `guest`, which has none. The lock is held. */
  private lengthWithoutTable(guest: number, maxLength: number): number {
    const { cache, imageId, tableSpan, sliceBytes } = this;
    const left = tableSpan - (guest % tableSpan);
    if (left >= maxLength) return maxLength;
    const number = Math.floor(guest / tableSpan);
    const { l1Offset, l1Entries } = this.place;
    // Of a snapshot that was shorter.
    if (number >= l1Entries) return maxLength;
    const index = number % (sliceBytes / 8);
    const first = number - index;
    const entries = Math.min(sliceBytes / 8, l1Entries - first);
    const slice = { slot: this.l1Hint, imageId, offset: l1Offset + first * 8, index, entries };
    return lengthWithoutTable(cache, slice, guest, maxLength, tableSpan);
  }

  /** Index of the entry for `guest` in its slice of the L2 table. */
  indexInSlice(guest: number): number {
    return Math.floor(guest / this.clusterSize) % this.entriesPerSlice;
  }

  /** Host offset of that slice. @param table as `l1Entry` gives it */
  sliceOffset(table: number, guest: number): number {
    const index = Math.floor(guest / this.clusterSize) % this.entriesPerTable;
    return table - (table % 2) + (index - (index % this.entriesPerSlice)) * this.entryBytes;
  }

  slice(offset: number, level: TableLevel): TableSlice {
    return { offset, length: this.sliceBytes, level };
  }

  /** Can a cluster or a table be there? The last cluster of the file may be cut. */
  isCluster(offset: number): boolean {
    const { clusterSize } = this;
    return offset % clusterSize === 0 && offset >= clusterSize && offset + clusterSize <= this.state.fileEnd;
  }

  /** May guest data be there? */
  isDataCluster(offset: number, guestCluster: number): boolean {
    if (!this.external) return this.isCluster(offset);
    if (offset % this.clusterSize !== 0 || offset > Number.MAX_SAFE_INTEGER) return false;
    return !this.header.rawDataFile || offset === guestCluster;
  }

  private clusters(slot: number, inSlice: number, guest: number, maxLength: number, owned: boolean): Mapping | string {
    const { clusterSize } = this;
    const words = this.cache.words32;
    let word = slot * SLICE_WORDS + inSlice * 2;
    const high = swap(words[word]);
    const low = swap(words[word + 1]);
    const kind = this.kindOf(high, low);
    const inCluster = guest % clusterSize;
    if (kind === COMPRESSED_KIND) return this.compressed(high, low, guest, maxLength);
    if (kind === INVALID) return `entry ${entryText(high, low)}`;
    const host = offsetOf(high, low);
    if (kind === DATA && !this.isDataCluster(host, guest - inCluster)) return `cluster offset ${hex(host)}`;
    const placed = this.hasPlace(high, host, guest - inCluster);
    let length = clusterSize - inCluster;
    let next = host + clusterSize;
    for (let left = this.entriesPerSlice - inSlice - 1; length < maxLength && left > 0; left--) {
      word += 2;
      const nextHigh = swap(words[word]);
      const nextLow = swap(words[word + 1]);
      if (this.kindOf(nextHigh, nextLow) !== kind) break;
      if (!this.goesOn(placed, high, nextHigh, offsetOf(nextHigh, nextLow), next, guest - inCluster + (next - host)))
        break;
      next += clusterSize;
      length += clusterSize;
    }
    return this.answer(
      kind,
      Math.min(length, maxLength),
      placed ? host + inCluster : undefined,
      owned && isCopied(high),
    );
  }

  /** The status of each granule is in two bits of the second half of an extended entry. */
  private subclusters(
    slot: number,
    inSlice: number,
    guest: number,
    maxLength: number,
    owned: boolean,
  ): Mapping | string {
    const { clusterSize, subclusterSize } = this;
    const words = this.cache.words32;
    let word = slot * SLICE_WORDS + inSlice * 4;
    const high = swap(words[word]);
    const low = swap(words[word + 1]);
    const inCluster = guest % clusterSize;
    if (isCompressed(high)) {
      if (words[word + 2] !== 0 || words[word + 3] !== 0) return 'a compressed cluster with subclusters';
      return this.compressed(high, low, guest, maxLength);
    }
    const sub = Math.floor(inCluster / subclusterSize);
    const kind = this.kindOfSubcluster(word, sub);
    if (kind === INVALID) return `subcluster ${sub} of entry ${entryText(high, low)}`;
    const host = offsetOf(high, low);
    if (kind === DATA && !this.isDataCluster(host, guest - inCluster)) return `cluster offset ${hex(host)}`;
    const placed = this.hasPlace(high, host, guest - inCluster);
    const run = this.runOfKind(word, sub, kind);
    let length = (sub + run) * subclusterSize - inCluster;
    let next = host + clusterSize;
    let goesOn = sub + run === SUBCLUSTERS;
    for (let left = this.entriesPerSlice - inSlice - 1; goesOn && length < maxLength && left > 0; left--) {
      word += 4;
      const nextHigh = swap(words[word]);
      const nextHost = offsetOf(nextHigh, swap(words[word + 1]));
      if (isCompressed(nextHigh) || this.kindOfSubcluster(word, 0) !== kind) break;
      if (!this.goesOn(placed, high, nextHigh, nextHost, next, guest - inCluster + (next - host))) break;
      next += clusterSize;
      const more = this.runOfKind(word, 0, kind);
      length += more * subclusterSize;
      goesOn = more === SUBCLUSTERS;
    }
    return this.answer(
      kind,
      Math.min(length, maxLength),
      placed ? host + inCluster : undefined,
      owned && isCopied(high),
    );
  }

  /** Does an entry have a place, whether or not what is in it counts? */
  private hasPlace(high: number, host: number, guestCluster: number): boolean {
    return (host !== 0 || (this.external && isCopied(high))) && this.isDataCluster(host, guestCluster);
  }

  /** Is the next entry in the same state as one with the first half `high`, and its place behind that one's? */
  private goesOn(
    placed: boolean,
    high: number,
    nextHigh: number,
    nextHost: number,
    next: number,
    nextGuest: number,
  ): boolean {
    if (!placed) return !this.hasPlace(nextHigh, nextHost, nextGuest);
    return nextHost === next && isCopied(nextHigh) === isCopied(high) && this.isDataCluster(next, nextGuest);
  }

  private answer(kind: Kind, length: number, offset: number | undefined, writable: boolean): Mapping {
    if (kind === DATA && offset !== undefined) return { kind: 'data', length, offset, writable };
    const status = kind === UNALLOCATED ? 'unallocated' : 'zero';
    return offset === undefined ? { kind: status, length } : { kind: status, length, offset };
  }

  private kindOf(high: number, low: number): Kind {
    if (isCompressed(high)) return COMPRESSED_KIND;
    // Version 2 knows no zero clusters: the bit is reserved there, and an image that has it set is wrong.
    if (isZero(low)) return this.header.version === 2 ? INVALID : ZERO_PLAIN;
    if (namesCluster(high, low)) return DATA;
    // Offset 0 is a place in a data file only.
    return this.external && isCopied(high) ? DATA : UNALLOCATED;
  }

  private kindOfSubcluster(word: number, sub: number): Kind {
    const words = this.cache.words32;
    const zero = bitAt(swap(words[word + 2]), sub);
    if (!bitAt(swap(words[word + 3]), sub)) return zero ? ZERO_PLAIN : UNALLOCATED;
    const high = swap(words[word]);
    const host = offsetOf(high, swap(words[word + 1]));
    if (zero || (host === 0 && !(this.external && isCopied(high)))) return INVALID;
    return DATA;
  }

  /** Subclusters in a row, from `sub` on, of this kind. */
  private runOfKind(word: number, sub: number, kind: Kind): number {
    const words = this.cache.words32;
    const zero = swap(words[word + 2]);
    const allocated = swap(words[word + 3]);
    if (kind === DATA) return runOfBits(withoutBits(allocated, zero), sub);
    if (kind === ZERO_PLAIN) return runOfBits(withoutBits(zero, allocated), sub);
    return runOfBits(otherBits(withBits(zero, allocated)), sub);
  }

  private compressed(high: number, low: number, guest: number, maxLength: number): Mapping | string {
    const { clusterSize, clusterBits } = this;
    const offset = compressedOffset(high, low, clusterBits);
    // The last cluster of the file may be cut: a stream that is cut with it fails when it is inflated.
    if (this.external || offset < clusterSize || offset >= this.state.fileEnd)
      return `compressed data at ${hex(offset)}`;
    const length = Math.min(maxLength, clusterSize - (guest % clusterSize));
    return { kind: 'compressed', length, offset, bytes: compressedBytes(high, low, clusterBits) };
  }

  corruptEntry(table: 'L1' | 'L2', guest: number, found: string): TableError {
    const { path } = this;
    return new TableError(
      `Cannot look up guest offset ${hex(guest)} of qcow2 image "${path}": ${table} ${found} is not allowed, clusters lie in [${hex(this.clusterSize)}, ${hex(this.state.fileEnd)}); run "imagefs check"`,
      path,
      guest,
    );
  }
}

function entryText(high: number, low: number): string {
  return hex((BigInt(high) << 32n) | BigInt(low));
}
