/**
 * What QED and qcow have in common: which cluster lies where, in two levels of tables of 64-bit host offsets, and no
 * reference counts.
 *
 *   guest offset 0x12345678, cluster size 64 KiB, L2 tables of 32,768 entries:
 *     cluster 0x1234 = 4660 → L1 index 0, L2 index 4660, offset in cluster 0x5678
 *
 * L1 and L2 tables alike are read in slices through the shared table cache. A slice begins at a multiple of SLICE_BYTES
 * from the start of its table, wherever in the file that is; the last one of a table may be shorter. Within the disk's size
 * an L1 index never leaves the L1 table: the header was checked for that.
 */
import { BlockError, hex } from '../errors';
import type { ImageState } from '../shared/image-state';
import { SLICE_BYTES, type TableCache, type TableSlice } from '../shared/table-cache';
import type { Storage } from '../storage/storage';
import { alignUp, MIB } from '../units';
import { lengthWithoutTable } from './absent-tables';
import { AppendAllocator } from './append-allocator';
import type { DriverCapabilities, FormatDriver, HostOffset, Mapping, Reservation, Target } from './driver';

export const ENTRY_BYTES = 8;
const UNALLOCATED = 0;
const HIGH_WORD = 2 ** 32;
/** Slots of the cache are this many 32-bit words apart, also when tables are smaller. */
const SLICE_WORDS = SLICE_BYTES / 4;
const ENTRIES_PER_SLICE = SLICE_BYTES / ENTRY_BYTES;
/** A new table up to this size gets all of its host blocks at once; a larger one (up to 1 GiB) only those of the slice in use. */
const TABLE_PREALLOCATE_MAX = MIB;

/** Place of the L1 table and its length, in `ImageState.numbers`. */
const L1_OFFSET = 0;
const L1_BYTES = 1;

/** When an image is opened, once: where its L1 table is. Bytes. */
export function initL1(state: ImageState, offset: HostOffset, length: number): void {
  state.numbers[L1_OFFSET] = offset;
  state.numbers[L1_BYTES] = length;
}

/** What a compressed cluster points to. */
export type StreamTarget = Extract<Target, { kind: 'compressed' }>;

/** What does not change while the image is open. Bytes. */
export interface TwoLevelLayout {
  /** In messages: `QED`. */
  name: string;
  clusterSize: number;
  /** Of an L2 table. */
  tableBytes: number;
  /** L2 tables begin at multiples of this. */
  tableAlignment: number;
  /** No cluster and no table begins before. */
  firstCluster: HostOffset;
  littleEndian: boolean;
  /** Entry that says "reads zero"; -1: there is none. */
  zeroEntry: number;
}

export abstract class TwoLevelDriver implements FormatDriver {
  abstract readonly format: string;
  abstract readonly capabilities: DriverCapabilities;
  abstract readonly usesDirtyBit: boolean;
  abstract readonly maxVirtualSize: number;
  readonly clusterSize: number;
  readonly granule: number;
  readonly data: Storage;
  readonly hasZeroClusters: boolean;
  readonly zeroesInPlace = false;
  readonly sliceSpan: number;
  protected readonly allocator: AppendAllocator;
  /** Guest bytes that one L2 table maps; may exceed the largest safe integer, then no disk reaches its end. */
  protected readonly tableSpan: number;
  protected readonly firstCluster: HostOffset;
  private readonly sliceBytes: number;
  private readonly entriesPerTable: number;
  private readonly entriesPerSlice: number;
  private readonly zeroEntry: number;
  private readonly littleEndian: boolean;
  /** The cache's slots, for entries whose bytes are the other way round. */
  private readonly slots: DataView;
  private l1Hint = 0;
  private l2Hint = 0;

  constructor(
    private readonly layout: TwoLevelLayout,
    readonly storage: Storage,
    readonly state: ImageState,
    protected readonly cache: TableCache,
    protected readonly imageId: number,
  ) {
    const { clusterSize, tableBytes, littleEndian } = layout;
    this.clusterSize = clusterSize;
    this.granule = clusterSize;
    this.data = storage;
    this.hasZeroClusters = layout.zeroEntry >= 0;
    this.allocator = new AppendAllocator(storage, state, clusterSize);
    this.sliceBytes = Math.min(SLICE_BYTES, tableBytes);
    this.entriesPerTable = tableBytes / ENTRY_BYTES;
    this.entriesPerSlice = this.sliceBytes / ENTRY_BYTES;
    this.firstCluster = layout.firstCluster;
    this.tableSpan = this.entriesPerTable * clusterSize;
    this.sliceSpan = this.entriesPerSlice * clusterSize;
    this.zeroEntry = layout.zeroEntry;
    this.littleEndian = littleEndian;
    const { bytes } = cache;
    this.slots = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  abstract writeHeader(fields: { dirty: boolean; virtualSize: number }): void;

  map(guest: number, maxLength: number): Mapping {
    const { clusterSize, cache, imageId } = this;
    const l2Table = this.l2TableOf(guest);
    if (typeof l2Table === 'object') return { kind: 'miss', slice: l2Table };
    if (l2Table === UNALLOCATED) return { kind: 'unallocated', length: this.lengthWithoutTable(guest, maxLength) };
    const index = Math.floor(guest / clusterSize) % this.entriesPerTable;
    const inSlice = index % this.entriesPerSlice;
    const offset = l2Table + (index - inSlice) * ENTRY_BYTES;
    const slot = cache.find(imageId, offset, this.l2Hint);
    if (slot < 0) return { kind: 'miss', slice: this.l2Slice(offset) };
    this.l2Hint = slot;
    const version = cache.version(slot);
    let word = slot * SLICE_WORDS + inSlice * 2;
    const first = this.entryAt(word);
    const inCluster = guest % clusterSize;
    let length = clusterSize - inCluster;
    let left = this.entriesPerSlice - inSlice - 1;
    const step = first > 1 ? clusterSize : 0;
    let next = first + step;
    while (length < maxLength && left > 0) {
      word += 2;
      if (this.entryAt(word) !== next) break;
      length += clusterSize;
      next += step;
      left--;
    }
    // Only now is it certain that the entries above belong to this table and not to one that took the slot.
    if (!cache.unchanged(slot, version, imageId, offset)) return { kind: 'miss', slice: this.l2Slice(offset) };
    if (length > maxLength) length = maxLength;
    if (first === UNALLOCATED) return { kind: 'unallocated', length };
    if (first === this.zeroEntry) return { kind: 'zero', length };
    if (!this.isCluster(first)) {
      const mapping = this.unusual(guest, maxLength, slot * SLICE_WORDS + inSlice * 2);
      if (!cache.unchanged(slot, version, imageId, offset)) return { kind: 'miss', slice: this.l2Slice(offset) };
      if (mapping === undefined) throw this.corrupt('L2', guest, first);
      return mapping;
    }
    // The run ends before a cluster past the end of the file; asked for that one, the branch above answers.
    const end = this.state.fileEnd;
    if (first + inCluster + length > end) length = Math.max(end - first - inCluster, clusterSize - inCluster);
    return { kind: 'data', length: Math.min(length, maxLength), offset: first + inCluster, writable: true };
  }

  prepareTables(guest: number): TableSlice | undefined {
    const { state } = this;
    const known = this.lookUpL2Table(guest);
    if (typeof known === 'object') return known;
    if (known !== UNALLOCATED) return undefined;
    // Two writers under one empty L1 entry: the second finds the first one's table.
    return state.metaMutex.with(() => {
      const again = this.lookUpL2Table(guest);
      if (typeof again === 'object') return again;
      if (again !== UNALLOCATED) return undefined;
      return this.addTable(guest);
    });
  }

  reserve(_guest: number, length: number): Reservation {
    return this.allocator.reserve(length, this.clusterSize);
  }

  release(reservation: Reservation): void {
    this.allocator.release(reservation);
  }

  giveBack(offset: HostOffset, length: number): void {
    this.allocator.giveBack(offset, length);
  }

  growHostFile(end: HostOffset): void {
    this.allocator.growHostFile(end);
  }

  cutTail(): void {
    this.allocator.cutTail();
  }

  publish(guest: number, length: number, target: Target): TableSlice | undefined {
    const { cache, imageId, clusterSize } = this;
    const l2Table = this.l2TableOf(guest);
    if (typeof l2Table === 'object') return l2Table;
    if (l2Table === UNALLOCATED) throw new BlockError('IO', `publish at ${hex(guest)} without a table`);
    const index = Math.floor(guest / clusterSize) % this.entriesPerTable;
    const inSlice = index % this.entriesPerSlice;
    const offset = l2Table + (index - inSlice) * ENTRY_BYTES;
    const count = Math.ceil(length / clusterSize);
    let entry = target.kind === 'compressed' ? 0 : this.entryOf(target);
    const slot = cache.find(imageId, offset, this.l2Hint);
    const claimed = slot < 0 ? -1 : cache.claim(slot, imageId, offset, inSlice * ENTRY_BYTES, count * ENTRY_BYTES);
    if (claimed < 0) return this.l2Slice(offset);
    if (claimed === 1) this.state.addDirtySlots(1);
    let word = slot * SLICE_WORDS + inSlice * 2;
    for (let i = 0; i < count; i++, word += 2) {
      const old = this.entryAt(word);
      if (old > 1 && this.isCluster(old)) this.allocator.drop(old, clusterSize);
      if (target.kind === 'compressed') this.setStreamAt(word, target);
      else this.setEntryAt(word, entry);
      if (target.kind === 'data') entry += clusterSize;
    }
    return undefined;
  }

  /**
   * The mapping for an entry that is no number with a meaning and no cluster of the file; undefined when it is corrupt.
   * @param word index of the entry's first half in the cache; the lock is held
   */
  protected unusual(_guest: number, _maxLength: number, _word: number): Mapping | undefined {
    return undefined;
  }

  /** Writes the entry of compressed data. @param word index of its first half in the cache; the lock is held exclusively */
  protected setStreamAt(_word: number, _target: StreamTarget): void {
    throw new Error(`${this.format} has no compressed clusters`);
  }

  protected get l1Offset(): HostOffset {
    return this.state.numbers[L1_OFFSET];
  }

  protected get l1Bytes(): number {
    return this.state.numbers[L1_BYTES];
  }

  protected corrupt(table: 'L1' | 'L2', guest: number, entry: number): BlockError {
    const { path } = this.storage;
    return new BlockError(
      'CORRUPT_IMAGE',
      `Cannot look up guest offset ${hex(guest)} of ${this.layout.name} image "${path}": ${table} entry ${hex(entry)} is not a cluster in [${hex(this.firstCluster)}, ${hex(this.state.fileEnd)})${this.advice()}`,
      { path, offset: guest },
    );
  }

  /** What to do about a corrupt image, the end of a message. */
  protected advice(): string {
    return '; run "imagefs check"';
  }

  private entryOf(target: Exclude<Target, StreamTarget>): number {
    if (target.kind === 'data') return target.offset;
    if (target.kind === 'unallocated') return UNALLOCATED;
    if (!this.hasZeroClusters) throw new Error(`${this.format} has no zero clusters`);
    return this.zeroEntry;
  }

  /** Both halves of an entry, exact where the number would be too large. */
  protected halvesAt(word: number): { high: number; low: number } {
    const { slots, littleEndian } = this;
    const [high, low] = littleEndian ? [1, 0] : [0, 1];
    return {
      high: slots.getUint32((word + high) * 4, littleEndian),
      low: slots.getUint32((word + low) * 4, littleEndian),
    };
  }

  /** @param word index of the entry's first half in the cache */
  private entryAt(word: number): number {
    const { words32 } = this.cache;
    if (this.littleEndian) return words32[word] + words32[word + 1] * HIGH_WORD;
    return this.slots.getUint32(word * 4) * HIGH_WORD + this.slots.getUint32(word * 4 + 4);
  }

  private setEntryAt(word: number, entry: number): void {
    this.setHalvesAt(word, Math.floor(entry / HIGH_WORD), entry % HIGH_WORD);
  }

  protected setHalvesAt(word: number, high: number, low: number): void {
    const { slots, littleEndian } = this;
    slots.setUint32(word * 4 + (littleEndian ? 0 : 4), low, littleEndian);
    slots.setUint32(word * 4 + (littleEndian ? 4 : 0), high, littleEndian);
  }

  private lookUpL2Table(guest: number): HostOffset | TableSlice {
    this.state.lock.lockShared();
    try {
      return this.l2TableOf(guest);
    } finally {
      this.state.lock.unlockShared();
    }
  }

  /** Host offset of the L2 table for `guest`, 0 when there is none, or the slice of L1 to load. The lock is held. */
  private l2TableOf(guest: number): HostOffset | TableSlice {
    const { cache, imageId } = this;
    const index = Math.floor(guest / this.tableSpan);
    const inSlice = index % ENTRIES_PER_SLICE;
    const offset = this.l1Offset + (index - inSlice) * ENTRY_BYTES;
    const slot = cache.find(imageId, offset, this.l1Hint);
    if (slot < 0) return this.l1Slice(offset);
    this.l1Hint = slot;
    const version = cache.version(slot);
    const entry = this.entryAt(slot * SLICE_WORDS + inSlice * 2);
    if (!cache.unchanged(slot, version, imageId, offset)) return this.l1Slice(offset);
    if (entry !== UNALLOCATED && !this.isTable(entry)) throw this.corrupt('L1', guest, entry);
    return entry;
  }

  /** As of `guest`, which has none. The lock is held. */
  private lengthWithoutTable(guest: number, maxLength: number): number {
    const { cache, imageId, tableSpan } = this;
    const left = tableSpan - (guest % tableSpan);
    if (left >= maxLength) return maxLength;
    const number = Math.floor(guest / tableSpan);
    const index = number % ENTRIES_PER_SLICE;
    const offset = this.l1Offset + (number - index) * ENTRY_BYTES;
    const entries = Math.min(SLICE_BYTES, this.l1Offset + this.l1Bytes - offset) / ENTRY_BYTES;
    const slice = { slot: this.l1Hint, imageId, offset, index, entries };
    return lengthWithoutTable(cache, slice, guest, maxLength, tableSpan);
  }

  /**
   * Allocates an L2 table and lets L1 point to it. The place reads zero, and does so on stable storage before L1 is
   * written (the flush syncs data first), so a crash in between shows an empty table at the worst. It gets its host blocks
   * now: a full disk must be met by this write, not by the flush that everybody's data waits for.
   */
  private addTable(guest: number): TableSlice | undefined {
    const { state, storage } = this;
    const { tableBytes } = this.layout;
    const place = this.reserveTable(alignUp(tableBytes, this.clusterSize));
    let missing: TableSlice | undefined;
    let published = false;
    try {
      this.allocator.growHostFile(place.offset + place.length);
      const index = Math.floor(guest / this.clusterSize) % this.entriesPerTable;
      const whole = tableBytes <= TABLE_PREALLOCATE_MAX;
      const from = whole ? 0 : (index - (index % this.entriesPerSlice)) * ENTRY_BYTES;
      storage.allocate(place.offset + from, whole ? tableBytes : this.sliceBytes, 'l2-allocate');
      state.markDataDirty();
      missing = this.locked(() => this.nameTable(guest, place.offset));
      published = missing === undefined;
    } finally {
      if (!published) this.locked(() => this.allocator.release(place));
    }
    return missing;
  }

  /** A place for a table, in one piece. Without the lock. */
  protected reserveTable(length: number): Reservation {
    return this.locked(() => {
      const place = this.allocator.reserve(length, length);
      this.forgetTables(place.offset, place.length);
      return place;
    });
  }

  /** A table may have been there before, and a slice of it may still be in the cache. Lock held exclusively. */
  protected forgetTables(_offset: HostOffset, _length: number): void {
    // Tables of most formats stay where they are.
  }

  /** Lets L1 point to a new table. Lock held exclusively. @returns the slice to load first */
  private nameTable(guest: number, table: HostOffset): TableSlice | undefined {
    const { cache, imageId, state } = this;
    const index = Math.floor(guest / this.tableSpan);
    const inSlice = index % ENTRIES_PER_SLICE;
    const offset = this.l1Offset + (index - inSlice) * ENTRY_BYTES;
    const slot = cache.find(imageId, offset, this.l1Hint);
    const claimed = slot < 0 ? -1 : cache.claim(slot, imageId, offset, inSlice * ENTRY_BYTES, ENTRY_BYTES);
    if (claimed < 0) return this.l1Slice(offset);
    if (claimed === 1) state.addDirtySlots(1);
    this.setEntryAt(slot * SLICE_WORDS + inSlice * 2, table);
    return undefined;
  }

  protected locked<T>(body: () => T): T {
    return this.state.lock.withExclusive(body);
  }

  private l1Slice(offset: HostOffset): TableSlice {
    return { offset, length: Math.min(SLICE_BYTES, this.l1Offset + this.l1Bytes - offset), level: 'l1' };
  }

  private l2Slice(offset: HostOffset): TableSlice {
    return { offset, length: this.sliceBytes, level: 'l2' };
  }

  private isCluster(offset: HostOffset): boolean {
    return (
      offset % this.clusterSize === 0 && offset >= this.firstCluster && offset + this.clusterSize <= this.state.fileEnd
    );
  }

  private isTable(offset: HostOffset): boolean {
    const { tableAlignment, tableBytes } = this.layout;
    return offset % tableAlignment === 0 && offset >= this.firstCluster && offset + tableBytes <= this.state.fileEnd;
  }
}
