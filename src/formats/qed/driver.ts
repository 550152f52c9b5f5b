/**
 * QED: which cluster lies where. Two levels of tables of 64-bit little-endian host offsets.
 *
 *   guest offset 0x12345678, cluster size 64 KiB, table size 4 clusters (32,768 entries):
 *     cluster 0x1234 = 4660 → L1 index 0, L2 index 4660, offset in cluster 0x5678
 *
 * L1 and L2 tables alike are read in slices through the shared table cache. Within the disk's size an L1 index never
 * leaves the L1 table: the header was checked for that.
 */
import { BlockError, hex } from '../../errors';
import type { ImageState } from '../../shared/image-state';
import { SLICE_BYTES, type TableCache, type TableLevel, type TableSlice } from '../../shared/table-cache';
import type { Storage } from '../../storage/storage';
import { MIB } from '../../units';
import { AppendAllocator } from '../append-allocator';
import type { DriverCapabilities, FormatDriver, HostOffset, Mapping, Reservation, Target } from '../driver';
import { encodeQedHeader, maxVirtualSize, QED_ENTRY_BYTES, QED_ZERO_CLUSTER, type QedHeader } from './header';

export const QED_CAPABILITIES: DriverCapabilities = { clusters: true, backing: true };

const UNALLOCATED = 0;
const HIGH_WORD = 2 ** 32;
/** Slots of the cache are this many 32-bit words apart, also when tables are smaller. */
const SLICE_WORDS = SLICE_BYTES / 4;
/** A new table up to this size gets all of its host blocks at once; a larger one (up to 1 GiB) only those of the slice in use. */
const TABLE_PREALLOCATE_MAX = MIB;

export class QedDriver implements FormatDriver {
  readonly format = 'qed';
  readonly capabilities = QED_CAPABILITIES;
  readonly clusterSize: number;
  readonly granule: number;
  readonly data: Storage;
  readonly usesDirtyBit: boolean;
  readonly maxVirtualSize: number;
  readonly sliceSpan: number;
  private readonly allocator: AppendAllocator;
  private readonly tableBytes: number;
  private readonly sliceBytes: number;
  private readonly entriesPerTable: number;
  private readonly entriesPerSlice: number;
  private readonly firstCluster: HostOffset;
  /** Guest bytes that one L2 table maps; may exceed the largest safe integer, then no disk reaches its end. */
  private readonly tableSpan: number;
  private l1Hint = 0;
  private l2Hint = 0;

  constructor(
    private readonly header: QedHeader,
    readonly storage: Storage,
    readonly state: ImageState,
    private readonly cache: TableCache,
    private readonly imageId: number,
  ) {
    this.clusterSize = header.clusterSize;
    this.granule = header.clusterSize;
    this.data = storage;
    this.usesDirtyBit = header.backing === undefined;
    this.allocator = new AppendAllocator(storage, state, header.clusterSize);
    this.tableBytes = header.tableSize * header.clusterSize;
    this.sliceBytes = Math.min(SLICE_BYTES, this.tableBytes);
    this.entriesPerTable = this.tableBytes / QED_ENTRY_BYTES;
    this.entriesPerSlice = this.sliceBytes / QED_ENTRY_BYTES;
    this.firstCluster = header.headerSize * header.clusterSize;
    this.tableSpan = this.entriesPerTable * header.clusterSize;
    this.sliceSpan = this.entriesPerSlice * header.clusterSize;
    const largest = maxVirtualSize(header.clusterSize, header.tableSize);
    this.maxVirtualSize = largest > BigInt(Number.MAX_SAFE_INTEGER) ? Number.MAX_SAFE_INTEGER : Number(largest);
  }

  map(guest: number, maxLength: number): Mapping {
    const { clusterSize, cache, imageId } = this;
    const l2Table = this.l2TableOf(guest);
    if (typeof l2Table === 'object') return { kind: 'miss', slice: l2Table };
    if (l2Table === UNALLOCATED) {
      return { kind: 'unallocated', length: Math.min(maxLength, this.tableSpan - (guest % this.tableSpan)) };
    }
    const index = Math.floor(guest / clusterSize) % this.entriesPerTable;
    const inSlice = index % this.entriesPerSlice;
    const offset = l2Table + (index - inSlice) * QED_ENTRY_BYTES;
    const slot = cache.find(imageId, offset, this.l2Hint);
    if (slot < 0) return { kind: 'miss', slice: this.slice(offset, 'l2') };
    this.l2Hint = slot;
    const version = cache.version(slot);
    const words = cache.words32;
    let word = slot * SLICE_WORDS + inSlice * 2;
    const first = words[word] + words[word + 1] * HIGH_WORD;
    const inCluster = guest % clusterSize;
    let length = clusterSize - inCluster;
    let left = this.entriesPerSlice - inSlice - 1;
    const step = first > QED_ZERO_CLUSTER ? clusterSize : 0;
    let next = first + step;
    while (length < maxLength && left > 0) {
      word += 2;
      if (words[word] + words[word + 1] * HIGH_WORD !== next) break;
      length += clusterSize;
      next += step;
      left--;
    }
    // Only now is it certain that the words above belong to this table and not to one that took the slot.
    if (!cache.unchanged(slot, version, imageId, offset)) return { kind: 'miss', slice: this.slice(offset, 'l2') };
    if (length > maxLength) length = maxLength;
    if (first === UNALLOCATED) return { kind: 'unallocated', length };
    if (first === QED_ZERO_CLUSTER) return { kind: 'zero', length };
    if (!this.isCluster(first)) throw this.corrupt('L2', guest, first);
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
    const offset = l2Table + (index - inSlice) * QED_ENTRY_BYTES;
    const count = Math.ceil(length / clusterSize);
    const slot = cache.find(imageId, offset, this.l2Hint);
    const claimed =
      slot < 0 ? -1 : cache.claim(slot, imageId, offset, inSlice * QED_ENTRY_BYTES, count * QED_ENTRY_BYTES);
    if (claimed < 0) return this.slice(offset, 'l2');
    if (claimed === 1) this.state.addDirtySlots(1);
    const words = cache.words32;
    let word = slot * SLICE_WORDS + inSlice * 2;
    let entry = target.kind === 'data' ? target.offset : target.kind === 'zero' ? QED_ZERO_CLUSTER : UNALLOCATED;
    for (let i = 0; i < count; i++, word += 2) {
      const old = words[word] + words[word + 1] * HIGH_WORD;
      if (old > QED_ZERO_CLUSTER && this.isCluster(old)) this.allocator.drop(old, clusterSize);
      words[word] = entry % HIGH_WORD;
      words[word + 1] = Math.floor(entry / HIGH_WORD);
      if (target.kind === 'data') entry += clusterSize;
    }
    return undefined;
  }

  writeHeader(fields: { dirty: boolean; virtualSize: number }): void {
    const bytes = encodeQedHeader({ ...this.header, ...fields });
    this.storage.write(0, bytes, 0, bytes.length, 'header-update');
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
    const inSlice = index % this.entriesPerSlice;
    const offset = this.header.l1TableOffset + (index - inSlice) * QED_ENTRY_BYTES;
    const slot = cache.find(imageId, offset, this.l1Hint);
    if (slot < 0) return this.slice(offset, 'l1');
    this.l1Hint = slot;
    const version = cache.version(slot);
    const word = slot * SLICE_WORDS + inSlice * 2;
    const entry = cache.words32[word] + cache.words32[word + 1] * HIGH_WORD;
    if (!cache.unchanged(slot, version, imageId, offset)) return this.slice(offset, 'l1');
    if (entry !== UNALLOCATED && !this.isTable(entry)) throw this.corrupt('L1', guest, entry);
    return entry;
  }

  /**
   * Allocates an L2 table and lets L1 point to it. The place reads zero, and does so on stable storage before L1 is
   * written (the flush syncs data first), so a crash in between shows an empty table at the worst. It gets its host blocks
   * now: a full disk must be met by this write, not by the flush that everybody's data waits for.
   */
  private addTable(guest: number): TableSlice | undefined {
    const { state, cache, imageId, storage } = this;
    state.lock.lockExclusive();
    let place: Reservation;
    try {
      place = this.allocator.reserve(this.tableBytes, this.tableBytes);
    } finally {
      state.lock.unlockExclusive();
    }
    let published = false;
    const l1Index = Math.floor(guest / this.tableSpan);
    const inSlice = l1Index % this.entriesPerSlice;
    const l1Slice = this.slice(this.header.l1TableOffset + (l1Index - inSlice) * QED_ENTRY_BYTES, 'l1');
    try {
      this.allocator.growHostFile(place.offset + this.tableBytes);
      const index = Math.floor(guest / this.clusterSize) % this.entriesPerTable;
      const whole = this.tableBytes <= TABLE_PREALLOCATE_MAX;
      const from = whole ? 0 : (index - (index % this.entriesPerSlice)) * QED_ENTRY_BYTES;
      storage.allocate(place.offset + from, whole ? this.tableBytes : this.sliceBytes, 'l2-allocate');
      state.markDataDirty();
      state.lock.lockExclusive();
      try {
        const slot = cache.find(imageId, l1Slice.offset, this.l1Hint);
        const claimed =
          slot < 0 ? -1 : cache.claim(slot, imageId, l1Slice.offset, inSlice * QED_ENTRY_BYTES, QED_ENTRY_BYTES);
        if (claimed < 0) return l1Slice;
        if (claimed === 1) state.addDirtySlots(1);
        const word = slot * SLICE_WORDS + inSlice * 2;
        cache.words32[word] = place.offset % HIGH_WORD;
        cache.words32[word + 1] = Math.floor(place.offset / HIGH_WORD);
        state.reserved--;
        published = true;
        return undefined;
      } finally {
        state.lock.unlockExclusive();
      }
    } finally {
      if (!published) {
        state.lock.lockExclusive();
        try {
          this.allocator.release(place);
        } finally {
          state.lock.unlockExclusive();
        }
      }
    }
  }

  private slice(offset: HostOffset, level: TableLevel): TableSlice {
    return { offset, length: this.sliceBytes, level };
  }

  private isCluster(offset: HostOffset): boolean {
    return (
      offset % this.clusterSize === 0 && offset >= this.firstCluster && offset + this.clusterSize <= this.state.fileEnd
    );
  }

  private isTable(offset: HostOffset): boolean {
    return (
      offset % this.clusterSize === 0 && offset >= this.firstCluster && offset + this.tableBytes <= this.state.fileEnd
    );
  }

  private corrupt(table: 'L1' | 'L2', guest: number, entry: number): BlockError {
    const { path } = this.storage;
    return new BlockError(
      'CORRUPT_IMAGE',
      `Cannot look up guest offset ${hex(guest)} of QED image "${path}": ${table} entry ${hex(entry)} is not a cluster in [${hex(this.firstCluster)}, ${hex(this.state.fileEnd)}); run "imagefs check"`,
      { path, offset: guest },
    );
  }
}
