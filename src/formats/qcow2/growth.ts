/**
 * Making room for what describes the clusters: refcount blocks, a larger refcount table, a larger L1 table. Everything here is
 * called without the image's lock and with the meta mutex held, so one thread at a time adds tables.
 *
 * The order of writes: new tables are written and synced before anything names them. A crash in between leaks at the worst.
 */
import { BlockError } from '../../errors';
import type { ImageState } from '../../shared/image-state';
import { SLICE_BYTES, type TableCache, type TableSlice } from '../../shared/table-cache';
import type { Storage } from '../../storage/storage';
import { alignUp, divCeil } from '../../units';
import type { HostEnd } from '../host-end';
import { highOf, lowOf, swap } from './entry';
import { HeaderWriter } from './header-writer';
import { l1EntriesFor, type Qcow2Header, REFCOUNT_TABLE_MAX_BYTES } from './layout';
import { setCount } from './refcount-codec';
import type { Refcounts } from './refcounts';
import type { Qcow2State } from './state';

const SLICE_WORDS = SLICE_BYTES / 4;

/** Clusters behind the end of the file: first the missing refcount blocks, then a new refcount table, then what was asked for. */
interface Area {
  /** First cluster. */
  start: number;
  /** Indices of the refcount blocks that it brings. */
  blocks: number[];
  /** Clusters of the new refcount table; 0: the old one is large enough. */
  table: number;
  /** Clusters asked for. */
  wanted: number;
}

export class Growth {
  private readonly headerWriter: HeaderWriter;

  constructor(
    private readonly header: Qcow2Header,
    private readonly storage: Storage,
    private readonly state: ImageState,
    private readonly own: Qcow2State,
    private readonly refcounts: Refcounts,
    private readonly cache: TableCache,
    private readonly imageId: number,
    private readonly hostEnd: HostEnd,
  ) {
    this.headerWriter = new HeaderWriter(header, storage, state, own);
  }

  /** Adds the refcount block that an allocation ran out at. @returns the slice to load first, after which it is called again */
  addWantedBlock(): TableSlice | undefined {
    const { own, refcounts, storage, state } = this;
    const { clusterSize } = this.header;
    const index = own.wantedBlock - 1;
    if (index < 0) return undefined;
    const known = this.locked(() => refcounts.blockAt(index));
    if (typeof known === 'object') return known;
    if (known !== 0) {
      own.wantedBlock = 0;
      return undefined;
    }
    if (index >= refcounts.tableEntries) {
      const area = this.makeArea(0);
      return typeof area === 'object' ? area : undefined;
    }
    // The first cluster that it counts is free, because nothing has counted it so far: the block goes there.
    const offset = index * refcounts.perBlock * clusterSize;
    refcounts.refuseMetadata(offset, clusterSize);
    this.hostEnd.grow(offset + clusterSize);
    const bytes = new Uint8Array(clusterSize);
    setCount(bytes, 0, 0, refcounts.order, 1);
    storage.write(offset, bytes, 0, clusterSize, 'refcount-allocate');
    state.markDataDirty();
    return this.locked(() => {
      state.fileEnd = Math.max(state.fileEnd, offset + clusterSize);
      refcounts.forgetTables(offset);
      const missing = this.nameBlock(index, offset);
      if (missing === undefined) own.wantedBlock = 0;
      return missing;
    });
  }

  /** Makes the L1 table large enough for a disk of `size` bytes. `flush`: first let the L1 table on disk become what it is in memory. */
  growL1(size: number): TableSlice | 'flush' | undefined {
    const { own, cache, imageId, storage } = this;
    const { clusterSize } = this.header;
    const entries = l1EntriesFor(size, clusterSize, this.header.extendedL2);
    if (entries <= own.l1Entries) return undefined;
    const clusters = divCeil(entries * 8, clusterSize);
    if (own.nextL1Clusters < clusters) return this.reserveL1(clusters);
    const oldBytes = own.l1Entries * 8;
    const old = own.l1Offset;
    if (oldBytes > 0 && this.locked(() => cache.isDirty(imageId, old, old + oldBytes))) return 'flush';
    const offset = own.nextL1Offset;
    // Named tables are on disk already, or they would be dirty in the old table.
    const table = new Uint8Array(clusters * clusterSize);
    if (oldBytes > 0) storage.read(old, table, 0, oldBytes);
    storage.write(offset, table, 0, table.length, 'l1-update');
    this.publishHeader({ l1TableOffset: offset, l1Entries: entries });
    this.locked(() => {
      own.l1Offset = offset;
      own.l1Entries = entries;
      if (own.nextL1Clusters > clusters) {
        this.drop(offset + table.length, own.nextL1Clusters * clusterSize - table.length);
      }
      own.nextL1Clusters = 0;
      if (oldBytes > 0) this.drop(old, alignUp(oldBytes, clusterSize));
    });
    return undefined;
  }

  /** Takes the place of a larger L1 table. A flush must follow: its counts are on disk before the header names it. */
  private reserveL1(clusters: number): TableSlice | 'flush' {
    const { own } = this;
    const offset = this.makeArea(clusters);
    if (typeof offset === 'object') return offset;
    this.locked(() => {
      // Left over from a growth that failed.
      if (own.nextL1Clusters > 0) this.drop(own.nextL1Offset, own.nextL1Clusters * this.header.clusterSize);
      own.nextL1Offset = offset;
      own.nextL1Clusters = clusters;
    });
    return 'flush';
  }

  /** As `HeaderWriter.publish`. */
  publishHeader(fields: Partial<Qcow2Header>): void {
    this.headerWriter.publish(fields);
  }

  /**
   * Clusters in a row for a table of snapshots or an L1 table, counted once; stale bytes may be in them. The meta mutex is held.
   * @returns host offset; or the slice to load, after which it is called again
   */
  takeArea(wanted: number): number | TableSlice {
    const { refcounts } = this;
    const { clusterSize } = this.header;
    const length = wanted * clusterSize;
    const place = this.locked(() => {
      const found = refcounts.allocate(wanted);
      if (found === 'prepare' || 'level' in found || found.length === length) return found;
      this.drop(found.offset, found.length);
      return 'short';
    });
    if (place === 'prepare') return this.addWantedBlock() ?? this.takeArea(wanted);
    if (place !== 'short' && 'level' in place) return place;
    const offset = place === 'short' ? this.makeArea(wanted) : place.offset;
    if (typeof offset === 'object') return offset;
    this.hostEnd.grow(offset + length);
    this.locked(() => {
      for (let done = 0; done < length; done += clusterSize) refcounts.forgetTables(offset + done);
    });
    return offset;
  }

  /** Nothing in memory points there any more; the tables on disk still may. Lock held exclusively. */
  drop(offset: number, length: number): void {
    if (!this.state.dropped.add(offset, length, 0)) this.state.forgotten += length;
  }

  /**
   * Takes `wanted` clusters in a row behind the end of the file, with all that is needed to count them.
   * @returns host offset of the first one, counted once and reading zero; or the slice to load, after which it is called again
   */
  private makeArea(wanted: number): number | TableSlice {
    const { state } = this;
    const { clusterSize } = this.header;
    const area = this.locked(() => this.planArea(wanted));
    if ('level' in area) return area;
    const end = area.start + area.blocks.length + area.table + wanted;
    this.hostEnd.grow(end * clusterSize);
    this.writeBlocks(area, end);
    state.markDataDirty();
    const named = area.table > 0 ? this.replaceTable(area) : this.locked(() => this.nameBlocks(area));
    if (named !== undefined) {
      this.locked(() => this.dropCounted(area, end));
      return named;
    }
    return (end - wanted) * clusterSize;
  }

  /** Lock held exclusively. */
  private planArea(wanted: number): Area | TableSlice {
    const { refcounts, state } = this;
    const { clusterSize } = this.header;
    const { perBlock, tableEntries } = refcounts;
    const area: Area = { start: state.fileEnd / clusterSize, blocks: [], table: 0, wanted };
    // Behind all that the old table counts: the header names a new table at once, so no count of it may be in the cache only.
    const behind = Math.max(area.start, tableEntries * perBlock);
    if (wanted === 0) area.start = behind;
    // Blocks and table count themselves too: until it fits.
    for (let clusters = -1; clusters !== area.blocks.length + area.table; ) {
      clusters = area.blocks.length + area.table;
      const last = Math.floor((area.start + Math.max(1, clusters + wanted) - 1) / perBlock);
      if (last >= tableEntries && area.start < behind) {
        area.start = behind;
        clusters = -1;
        continue;
      }
      const blocks: number[] = [];
      for (let index = Math.floor(area.start / perBlock); index <= last; index++) {
        const block = refcounts.blockAt(index);
        if (typeof block === 'object') return block;
        if (block === 0) blocks.push(index);
      }
      if (blocks.length > area.blocks.length) area.blocks = blocks;
      if (last >= tableEntries) area.table = Math.max(area.table, this.tableClustersFor(last + 1));
    }
    const end = area.start + area.blocks.length + area.table + wanted;
    const missing = this.countExisting(area.start, end, area.blocks);
    if (missing !== undefined) return missing;
    state.fileEnd = end * clusterSize;
    return area;
  }

  /** Some more than needed, so that a growing file does not need a new table soon. */
  private tableClustersFor(entries: number): number {
    const { clusterSize } = this.header;
    const most = REFCOUNT_TABLE_MAX_BYTES / 8;
    if (entries > most) {
      const { path } = this.storage;
      throw new BlockError(
        'LIMIT_EXCEEDED',
        `Cannot allocate in qcow2 image "${path}": its refcount table would have ${entries} entries, at most ${most} are supported`,
        { path },
      );
    }
    return divCeil(Math.min(most, Math.ceil(Math.max(entries, this.refcounts.tableEntries) * 1.5)) * 8, clusterSize);
  }

  /** Counts the part of `[start, end)` whose blocks exist. Nothing is changed when a slice is missing. Lock held exclusively. */
  private countExisting(start: number, end: number, newBlocks: number[]): TableSlice | undefined {
    const { refcounts } = this;
    // The first round makes all slices dirty, so that none is evicted in the second.
    for (const value of [0, 1]) {
      for (let cluster = start; cluster < end; ) {
        const block = Math.floor(cluster / refcounts.perBlock);
        const count = Math.min(end - cluster, refcounts.perSlice - (cluster % refcounts.perSlice));
        if (!newBlocks.includes(block)) {
          const missing = refcounts.set(cluster, count, value);
          if (missing !== undefined) return missing;
        }
        cluster += count;
      }
    }
    return undefined;
  }

  private writeBlocks(area: Area, end: number): void {
    const { refcounts, storage } = this;
    const { clusterSize } = this.header;
    const bytes = new Uint8Array(clusterSize);
    area.blocks.forEach((index, i) => {
      bytes.fill(0);
      const base = index * refcounts.perBlock;
      const from = Math.max(area.start, base);
      const to = Math.min(end, base + refcounts.perBlock);
      for (let cluster = from; cluster < to; cluster++) setCount(bytes, 0, cluster - base, refcounts.order, 1);
      storage.write((area.start + i) * clusterSize, bytes, 0, clusterSize, 'refcount-allocate');
    });
  }

  /** Lets the table name the area's blocks. Lock held exclusively. */
  private nameBlocks(area: Area): TableSlice | undefined {
    const { clusterSize } = this.header;
    // All of them or none: a block with a name must not be given back. What is claimed is not evicted.
    for (const index of area.blocks) {
      const claimed = this.claimEntry(index);
      if (typeof claimed === 'object') return claimed;
    }
    for (let i = 0; i < area.blocks.length; i++) {
      const offset = (area.start + i) * clusterSize;
      this.refcounts.forgetTables(offset);
      this.nameBlock(area.blocks[i], offset);
    }
    return undefined;
  }

  /** Gives an area back whose blocks got no name: what they would count was never counted. Lock held exclusively. */
  private dropCounted(area: Area, end: number): void {
    const { perBlock } = this.refcounts;
    const { clusterSize } = this.header;
    for (let cluster = area.start; cluster < end; ) {
      const block = Math.floor(cluster / perBlock);
      const next = Math.min(end, (block + 1) * perBlock);
      if (!area.blocks.includes(block)) this.drop(cluster * clusterSize, (next - cluster) * clusterSize);
      cluster = next;
    }
  }

  private nameBlock(index: number, offset: number): TableSlice | undefined {
    const { words32 } = this.cache;
    const word = this.claimEntry(index);
    if (typeof word === 'object') return word;
    words32[word] = swap(highOf(offset));
    words32[word + 1] = swap(lowOf(offset));
    return undefined;
  }

  /** Word of the table's entry for a block, safe from eviction and dirty; or the slice to load. Lock held exclusively. */
  private claimEntry(index: number): number | TableSlice {
    const { cache, imageId, own, refcounts, state } = this;
    const inSlice = index % (refcounts.sliceBytes / 8);
    const sliceOffset = own.refcountTableOffset + (index - inSlice) * 8;
    const slot = cache.find(imageId, sliceOffset, 0);
    const claimed = slot < 0 ? -1 : cache.claim(slot, imageId, sliceOffset, inSlice * 8, 8);
    if (claimed < 0) return refcounts.slice(sliceOffset, 'refcount-table');
    if (claimed === 1) state.addDirtySlots(1);
    return slot * SLICE_WORDS + inSlice * 2;
  }

  /** Writes the larger table and lets the header name it. */
  private replaceTable(area: Area): undefined {
    const { own, storage } = this;
    const { clusterSize } = this.header;
    const first = area.start + area.blocks.length;
    const table = Buffer.alloc(area.table * clusterSize);
    this.readTable(table);
    area.blocks.forEach((index, i) => {
      table.writeBigUInt64BE(BigInt((area.start + i) * clusterSize), index * 8);
    });
    storage.write(first * clusterSize, table, 0, table.length, 'refcount-allocate');
    const old = { offset: own.refcountTableOffset, length: own.refcountTableClusters * clusterSize };
    this.publishHeader({ refcountTableOffset: first * clusterSize, refcountTableClusters: area.table });
    this.locked(() => {
      for (let cluster = area.start; cluster < first + area.table; cluster++) {
        this.refcounts.forgetTables(cluster * clusterSize);
      }
      own.refcountTableOffset = first * clusterSize;
      own.refcountTableClusters = area.table;
      this.drop(old.offset, old.length);
    });
    return undefined;
  }

  /**
   * The refcount table as it is in memory. Blocks that it names and that are not flushed yet are in the file as zeroes, and
   * synced before the header names the copy: until they are flushed they say nothing, as if they were not named.
   */
  private readTable(target: Buffer): void {
    const { own, cache, imageId, storage, refcounts } = this;
    const { sliceBytes } = refcounts;
    const length = own.refcountTableClusters * this.header.clusterSize;
    for (let at = 0; at < length; at += sliceBytes) {
      const offset = own.refcountTableOffset + at;
      const cached = this.locked(() => {
        const slot = cache.find(imageId, offset, 0);
        if (slot < 0) return false;
        const version = cache.version(slot);
        target.set(cache.bytes.subarray(slot * SLICE_BYTES, slot * SLICE_BYTES + sliceBytes), at);
        return cache.unchanged(slot, version, imageId, offset);
      });
      // Not in the cache, so it does not differ from the file, and nobody changes it meanwhile: the meta mutex is ours.
      if (!cached) storage.read(offset, target, at, sliceBytes);
    }
  }

  private locked<T>(body: () => T): T {
    return this.state.lock.withExclusive(body);
  }
}
