/**
 * Reference counts: a table of offsets of blocks, a block of counts of 1 to 64 bits, both through the shared table cache.
 *
 * A place goes   count 0 → reserved (count 1 in memory) → published → dropped → (release durable) → retired → (older requests
 * ended; punched) → counted down → free, if that was the last reference.
 *
 * A flush writes counts before the tables that name the places. So counts on disk are never too low for what tables on disk
 * name, whatever moment a crash picks; they may be too high: leaks.
 */
import { BlockError, hex } from '../../errors';
import type { ImageState } from '../../shared/image-state';
import { SLICE_BYTES, type TableCache, type TableLevel, type TableSlice } from '../../shared/table-cache';
import type { Storage } from '../../storage/storage';
import { TableError } from '../driver';
import { offsetOf, swap } from './entry';
import type { Qcow2Header } from './layout';
import { getCount, maxRefcount, setCount } from './refcount-codec';
import type { Qcow2State } from './state';

const SLICE_WORDS = SLICE_BYTES / 4;
const HIGH = 2 ** 32;
/** No block has the count: it is 0. */
export const NO_BLOCK = -1;
/** Counts that are not 0 this many clusters past the end of the file: the search for a free one gives up. */
const SEARCH_PAST_END = 2 ** 20;

const TABLE_NAMES: Record<TableLevel, string> = {
  l1: 'an L1 table',
  l2: 'the L2 table',
  refcount: 'the refcount block',
  'refcount-table': 'the refcount table',
};

/** Clusters that an allocation got. */
export interface Place {
  offset: number;
  /** Bytes, whole clusters. */
  length: number;
  /** Reads zero. */
  fresh: boolean;
}

export class Refcounts {
  readonly order: number;
  /** Largest count. */
  readonly max: number;
  /** Clusters that one block counts, and one slice of it. */
  readonly perBlock: number;
  readonly perSlice: number;
  readonly sliceBytes: number;
  private readonly clusterSize: number;
  /** Blocks that the table on disk named when this thread opened the image. They stay where they are. */
  private readonly blocks = new Set<number>();
  private tableHint = 0;
  private blockHint = 0;

  constructor(
    header: Qcow2Header,
    private readonly storage: Storage,
    private readonly state: ImageState,
    private readonly own: Qcow2State,
    private readonly cache: TableCache,
    private readonly imageId: number,
  ) {
    this.order = header.refcountOrder;
    this.max = maxRefcount(header.refcountOrder);
    this.clusterSize = header.clusterSize;
    this.sliceBytes = Math.min(SLICE_BYTES, header.clusterSize);
    this.perBlock = (header.clusterSize * 8) / 2 ** header.refcountOrder;
    this.perSlice = (this.sliceBytes * 8) / 2 ** header.refcountOrder;
  }

  /** Remembers where the blocks are, so that nothing is written over one. Once, without the lock. */
  rememberBlocks(): void {
    const { own, storage, clusterSize } = this;
    const table = Buffer.alloc(own.refcountTableClusters * clusterSize);
    storage.read(own.refcountTableOffset, table, 0, table.length);
    for (let at = 0; at < table.length; at += 8) {
      const block = table.readUInt32BE(at) * HIGH + offsetOf(0, table.readUInt32BE(at + 4));
      if (block !== 0) this.blocks.add(block);
    }
  }

  /** Entries of the refcount table. */
  get tableEntries(): number {
    return (this.own.refcountTableClusters * this.clusterSize) / 8;
  }

  slice(offset: number, level: TableLevel): TableSlice {
    return { offset, length: this.sliceBytes, level };
  }

  /** Host offset of a block, 0 when there is none, or the slice of the table to load. The lock is held. */
  blockAt(index: number): number | TableSlice {
    const { cache, imageId } = this;
    if (index >= this.tableEntries) return 0;
    const inSlice = index % (this.sliceBytes / 8);
    const offset = this.own.refcountTableOffset + (index - inSlice) * 8;
    const slot = cache.find(imageId, offset, this.tableHint);
    if (slot < 0) return this.slice(offset, 'refcount-table');
    this.tableHint = slot;
    const version = cache.version(slot);
    const word = slot * SLICE_WORDS + inSlice * 2;
    const high = swap(cache.words32[word]);
    const low = swap(cache.words32[word + 1]);
    if (!cache.unchanged(slot, version, imageId, offset)) return this.slice(offset, 'refcount-table');
    // Here the offset has 64 bits, not 56.
    const block = high * HIGH + offsetOf(0, low);
    const { clusterSize } = this;
    if (block === 0) return 0;
    if (block % clusterSize !== 0 || block < clusterSize || block + clusterSize > this.state.fileEnd) {
      throw this.corrupt(`refcount block ${index} at ${hex(block)} is not a cluster of the file`);
    }
    return block;
  }

  /** Host offset of the slice with the count of `cluster`; NO_BLOCK; or the slice of the table to load. The lock is held. */
  sliceOf(cluster: number): number | TableSlice {
    const block = this.blockAt(Math.floor(cluster / this.perBlock));
    if (typeof block === 'object') return block;
    if (block === 0) return NO_BLOCK;
    return block + Math.floor((cluster % this.perBlock) / this.perSlice) * this.sliceBytes;
  }

  /** Reference count of one cluster, or the slice to load. The lock is held. */
  get(cluster: number): number | TableSlice {
    const offset = this.sliceOf(cluster);
    if (typeof offset === 'object') return offset;
    if (offset === NO_BLOCK) return 0;
    const slot = this.find(offset);
    if (slot < 0) return this.slice(offset, 'refcount');
    const version = this.cache.version(slot);
    const count = getCount(this.cache.bytes, slot * SLICE_BYTES, cluster % this.perSlice, this.order);
    return this.cache.unchanged(slot, version, this.imageId, offset) ? count : this.slice(offset, 'refcount');
  }

  /**
   * Sets the counts of `[cluster, cluster + count)`, all in one slice that has a block. Lock held exclusively.
   * @returns the slice to load first (nothing was changed), else undefined
   */
  set(cluster: number, count: number, value: number): TableSlice | undefined {
    const slot = this.claim(cluster, count);
    if (typeof slot === 'object') return slot;
    this.fill(slot, cluster, count, value);
    if (value === 0) this.endStreams(cluster, count);
    return undefined;
  }

  /** No stream goes behind those in `[cluster, cluster + count)` any more. Lock held exclusively. */
  endStreams(cluster: number, count: number): void {
    const { own } = this;
    const open = Math.floor(own.streamEnd / this.clusterSize);
    if (open >= cluster && open < cluster + count) own.streamEnd = 0;
  }

  /**
   * Adds to the counts of `[cluster, cluster + count)`, all in one slice. Lock held exclusively. All of them or, with an error, none.
   * @returns the slice to load first (nothing was changed), else undefined
   */
  change(cluster: number, count: number, by: number): TableSlice | undefined {
    const slot = this.claim(cluster, count);
    if (typeof slot === 'object') return slot;
    const { bytes } = this.cache;
    const at = slot * SLICE_BYTES;
    const first = cluster % this.perSlice;
    for (let index = first; index < first + count; index++) {
      const next = getCount(bytes, at, index, this.order) + by;
      if (next < 0)
        throw this.corrupt(`the reference count of the cluster at ${hex(cluster * this.clusterSize)} is too low`);
      if (next > this.max) throw this.tooMany();
    }
    for (let index = first; index < first + count; index++) {
      const next = getCount(bytes, at, index, this.order) + by;
      setCount(bytes, at, index, this.order, next);
      if (next !== 0) continue;
      this.searchAgain(cluster + index - first);
      this.endStreams(cluster + index - first, 1);
    }
    return undefined;
  }

  /** Up to `wanted` free clusters that lie together; their counts are 1 afterwards. Lock held exclusively; memory only. */
  allocate(wanted: number): Place | TableSlice | 'prepare' {
    return this.allocateListed(wanted) ?? this.search(wanted);
  }

  /** A free place that is known to read zero. */
  private allocateListed(wanted: number): Place | TableSlice | undefined {
    const { clusterSize } = this;
    const { free } = this.state;
    const listed = free.take(wanted * clusterSize, clusterSize);
    if (listed === undefined) return undefined;
    const first = listed.offset / clusterSize;
    const count = Math.min(listed.length / clusterSize, this.perSlice - (first % this.perSlice));
    const length = count * clusterSize;
    if (length < listed.length) free.add(listed.offset + length, listed.length - length);
    const slot = this.claim(first, count);
    if (typeof slot === 'object') {
      free.add(listed.offset, length);
      return slot;
    }
    this.fill(slot, first, count, 1);
    return { offset: listed.offset, length, fresh: true };
  }

  private search(wanted: number): Place | TableSlice | 'prepare' {
    const { cache, imageId, own, perSlice, clusterSize } = this;
    for (;;) {
      const from = own.searchFrom;
      const offset = this.sliceOf(from);
      if (typeof offset === 'object') return offset;
      if (offset === NO_BLOCK) {
        own.wantedBlock = Math.floor(from / this.perBlock) + 1;
        return 'prepare';
      }
      const slot = this.find(offset);
      if (slot < 0) return this.slice(offset, 'refcount');
      const version = cache.version(slot);
      const at = slot * SLICE_BYTES;
      let index = from % perSlice;
      while (index < perSlice && getCount(cache.bytes, at, index, this.order) !== 0) index++;
      let end = Math.min(index + 1, perSlice);
      while (end < perSlice && end - index < wanted && getCount(cache.bytes, at, end, this.order) === 0) end++;
      if (!cache.unchanged(slot, version, imageId, offset)) return this.slice(offset, 'refcount');
      const first = from - (from % perSlice) + index;
      own.searchFrom = first;
      if (index < perSlice) return this.take(first, end - index, slot, offset);
      if ((first - SEARCH_PAST_END) * clusterSize > this.state.fileEnd) {
        throw this.corrupt('a million clusters past the end of the file have references');
      }
    }
  }

  /**
   * Counts free clusters as used. They are of one sort: all listed as clean, or all behind the file, or neither.
   * @param slot where the slice at `slice`, which has their counts, was found
   */
  private take(first: number, found: number, slot: number, slice: number): Place | TableSlice {
    const { clusterSize, state } = this;
    const offset = first * clusterSize;
    let count = found;
    const beyond = offset >= state.fileEnd;
    if (!beyond) count = Math.min(count, (state.fileEnd - offset) / clusterSize);
    if (offset + count * clusterSize > Number.MAX_SAFE_INTEGER) throw this.corrupt('the file has no room left');
    this.refuseMetadata(offset, count * clusterSize);
    if (!this.claimSlot(slot, slice, first, count)) return this.slice(slice, 'refcount');
    const part = state.free.takeAt(offset, count * clusterSize);
    count = part.length / clusterSize;
    this.fill(slot, first, count, 1);
    this.own.searchFrom = first + count;
    if (beyond) state.fileEnd = offset + part.length;
    return { offset, length: part.length, fresh: beyond || part.listed };
  }

  /** One reference less. Lock held exclusively. @returns references left, or the slice to load */
  decrement(cluster: number): number | TableSlice {
    const count = this.get(cluster);
    if (typeof count === 'object') return count;
    if (count === 0)
      throw this.corrupt(`cluster at ${hex(cluster * this.clusterSize)} is used, its reference count is 0`);
    return this.set(cluster, 1, count - 1) ?? count - 1;
  }

  /** A clean place with count 0. Lock held exclusively. */
  addFree(offset: number, length: number): void {
    if (this.state.free.add(offset, length)) return;
    // No room in the list: the search finds it, not knowing that it is clean.
    this.searchAgain(offset / this.clusterSize);
  }

  /** The cluster has count 0 and is in no list. Lock held exclusively. */
  searchAgain(cluster: number): void {
    this.own.searchFrom = Math.min(this.own.searchFrom, cluster);
  }

  /** Forgets what the cache holds of a cluster that is no table any more, or not yet. Lock held exclusively. */
  forgetTables(offset: number): void {
    for (let at = 0; at < this.clusterSize; at += this.sliceBytes) {
      if (this.cache.forgetSlice(this.imageId, offset + at)) this.state.addDirtySlots(-1);
    }
  }

  /** Counts that say "free" about the header or a table are wrong: writing there would destroy the image. */
  refuseMetadata(offset: number, length: number): void {
    const { own, clusterSize } = this;
    // A table behind the end of the file is refused before the cache holds anything of it.
    const isBehind = offset >= this.state.fileEnd;
    const where =
      own.tablesIn(offset, length, clusterSize) ??
      (isBehind ? this.blockIn(offset, length) : this.knownTableIn(offset, length));
    if (where !== undefined) throw this.corrupt(`the reference count of ${where} is 0`);
  }

  /**
   * A refcount block, or an L2 table of the live disk that was looked at lately, unless `but` says to leave those out. The cache only
   * hints at the L2 tables: a reader may load a slice of one in the moment in which a deleted snapshot gives it back. The lock is held.
   */
  knownTableIn(offset: number, length: number, but?: TableLevel): string | undefined {
    const { sliceBytes, cache, imageId, clusterSize } = this;
    const block = this.blockIn(offset, length);
    if (block !== undefined) return block;
    for (let at = offset - (offset % sliceBytes); at < offset + length; at += sliceBytes) {
      const level = cache.levelOf(imageId, at);
      if (level === undefined || level === but) continue;
      const cluster = at - (at % clusterSize);
      if (level === 'refcount' || (level === 'l2' && this.isNamedByL1(cluster))) {
        return `${TABLE_NAMES[level]} at ${hex(cluster)}`;
      }
    }
    return undefined;
  }

  /** A refcount block that the table named when the image was opened, wherever it lies. */
  private blockIn(offset: number, length: number): string | undefined {
    for (let at = offset - (offset % this.clusterSize); at < offset + length; at += this.clusterSize) {
      if (this.blocks.has(at)) return `${TABLE_NAMES.refcount} at ${hex(at)}`;
    }
    return undefined;
  }

  /** Does the live disk have its L2 table there? Reads all of L1, so ask only where something speaks for it. The lock is held. */
  private isNamedByL1(cluster: number): boolean {
    const { own, cache, imageId, storage, sliceBytes } = this;
    const bytes = Buffer.alloc(sliceBytes);
    for (let at = 0; at < own.l1Entries * 8; at += sliceBytes) {
      const slot = cache.find(imageId, own.l1Offset + at, 0);
      const version = slot < 0 ? -1 : cache.version(slot);
      if (slot >= 0) bytes.set(cache.bytes.subarray(slot * SLICE_BYTES, slot * SLICE_BYTES + sliceBytes));
      // What is not in the cache does not differ from the file.
      if (slot < 0 || !cache.unchanged(slot, version, imageId, own.l1Offset + at)) {
        storage.read(own.l1Offset + at, bytes, 0, sliceBytes);
      }
      const entries = Math.min(sliceBytes / 8, own.l1Entries - at / 8);
      for (let entry = 0; entry < entries; entry++) {
        const high = bytes.readUInt32BE(entry * 8);
        if (offsetOf(high, bytes.readUInt32BE(entry * 8 + 4)) === cluster) return true;
      }
    }
    return false;
  }

  private tooMany(): BlockError {
    const { path } = this.storage;
    return new BlockError(
      'LIMIT_EXCEEDED',
      `Cannot share clusters of qcow2 image "${path}" any more: its reference counts have ${2 ** this.order} bits, at most ${this.max} references`,
      { path },
    );
  }

  corrupt(problem: string): TableError {
    const { path } = this.storage;
    return new TableError(`Cannot allocate in qcow2 image "${path}": ${problem}; run "imagefs check"`, path);
  }

  /** Slot with the counts, safe from eviction and dirty; or the slice to load. Lock held exclusively. */
  private claim(cluster: number, count: number): number | TableSlice {
    const offset = this.sliceOf(cluster);
    if (typeof offset === 'object') return offset;
    if (offset === NO_BLOCK) throw this.corrupt(`no refcount block for ${hex(cluster * this.clusterSize)}`);
    const slot = this.find(offset);
    return slot >= 0 && this.claimSlot(slot, offset, cluster, count) ? slot : this.slice(offset, 'refcount');
  }

  /** The same where the slot is known. @returns false when the slice was evicted: load it again */
  private claimSlot(slot: number, slice: number, cluster: number, count: number): boolean {
    const bits = 2 ** this.order;
    const index = cluster % this.perSlice;
    const from = Math.floor((index * bits) / 8);
    const to = Math.ceil(((index + count) * bits) / 8);
    const claimed = this.cache.claim(slot, this.imageId, slice, from, to - from);
    if (claimed === 1) this.state.addDirtySlots(1);
    return claimed >= 0;
  }

  private fill(slot: number, cluster: number, count: number, value: number): void {
    const index = cluster % this.perSlice;
    for (let i = 0; i < count; i++) setCount(this.cache.bytes, slot * SLICE_BYTES, index + i, this.order, value);
  }

  private find(offset: number): number {
    const slot = this.cache.find(this.imageId, offset, this.blockHint);
    if (slot >= 0) this.blockHint = slot;
    return slot;
  }
}
