/**
 * qcow2 for the engine: where guest data is, and room for more. See `mapping.ts` for lookups, `refcounts.ts` for places,
 * `growth.ts` for new tables, `publish.ts` for changes of entries.
 */
import { BlockError, hex } from '../../errors';
import { logOf } from '../../log';
import type { ImageState } from '../../shared/image-state';
import type { TableCache, TableSlice } from '../../shared/table-cache';
import type { Storage } from '../../storage/storage';
import { alignDown, alignUp } from '../../units';
import type { FormatDriver, HostOffset, Mapping, Reservation, Target } from '../driver';
import { HostEnd } from '../host-end';
import { readCompressedCluster } from './compressed';
import { COPIED, clearCopied, highOf, lowOf, swap } from './entry';
import { Growth } from './growth';
import { encodeQcow2Fields } from './header';
import { maxVirtualSize, QCOW2_CAPABILITIES, type Qcow2Header } from './layout';
import { OWNED, Qcow2Mapping, SLICE_WORDS } from './mapping';
import { namesPlace, ownCluster, publishClusters, publishSubclusters } from './publish';
import { type Place, Refcounts } from './refcounts';
import { Qcow2Snapshots } from './snapshots';
import { Qcow2State } from './state';

const log = logOf('qcow2');
/** Table slices that freeing one run of clusters may ask for. */
const LOADS_MAX = 64;

export class Qcow2Driver implements FormatDriver {
  readonly format = 'qcow2';
  readonly capabilities = QCOW2_CAPABILITIES;
  readonly clusterSize: number;
  readonly granule: number;
  /** Counts on disk are never too low (see refcounts.ts), so the bit is never needed. */
  readonly usesDirtyBit = false;
  readonly hasZeroClusters: boolean;
  readonly zeroesInPlace: boolean;
  readonly maxVirtualSize: number;
  readonly sliceSpan: number;
  readonly own: Qcow2State;
  readonly mapping: Qcow2Mapping;
  readonly refcounts: Refcounts;
  readonly growth: Growth;
  readonly snapshots: Qcow2Snapshots | undefined;
  private readonly hostEnd: HostEnd;
  private l2Hint = 0;

  constructor(
    private readonly header: Qcow2Header,
    readonly storage: Storage,
    readonly data: Storage,
    readonly state: ImageState,
    private readonly cache: TableCache,
    private readonly imageId: number,
  ) {
    this.own = new Qcow2State(state);
    this.mapping = new Qcow2Mapping(header, storage.path, state, cache, imageId, this.own);
    this.refcounts = new Refcounts(header, storage, state, this.own, cache, imageId);
    this.hostEnd = new HostEnd(storage, state, header.clusterSize);
    const { own, refcounts, hostEnd } = this;
    this.growth = new Growth(header, storage, state, own, refcounts, cache, imageId, hostEnd);
    // What is in a data file is overwritten in place: no snapshot could keep it.
    this.snapshots =
      header.dataFile === undefined
        ? new Qcow2Snapshots({ header, storage, state, own, refcounts, growth: this.growth }, cache, imageId)
        : undefined;
    this.clusterSize = header.clusterSize;
    this.granule = this.mapping.subclusterSize;
    this.hasZeroClusters = header.version > 2;
    this.zeroesInPlace = header.rawDataFile;
    this.maxVirtualSize = maxVirtualSize(header.clusterSize, header.extendedL2);
    this.sliceSpan = this.mapping.entriesPerSlice * header.clusterSize;
  }

  map(guest: number, maxLength: number): Mapping {
    return this.mapping.map(guest, maxLength);
  }

  prepareTables(guest: number): TableSlice | undefined {
    const { state, own } = this;
    if (own.wantedBlock === 0) {
      const table = this.lookUpTable(guest);
      if (typeof table === 'object') return table;
      if (table % 2 === OWNED) return undefined;
    }
    return state.metaMutex.with(() => {
      const missing = this.growth.addWantedBlock();
      if (missing !== undefined) return missing;
      // Two writers under one L1 entry: the second finds the first one's table.
      const table = this.lookUpTable(guest);
      if (typeof table === 'object') return table;
      return table % 2 === OWNED ? undefined : this.addTable(guest, table);
    });
  }

  growTables(size: number): TableSlice | 'flush' | undefined {
    if (this.header.version === 2 && this.own.snapshotCount > 0) {
      // Entries of version 2 need not say the size of their disk: they would be taken for larger ones.
      const { path } = this.storage;
      const why = 'a qcow2 version 2 image with snapshots keeps its size';
      throw new BlockError('UNSUPPORTED_FEATURE', `Cannot grow "${path}": ${why}`, { path });
    }
    return this.state.metaMutex.with(() => {
      const missing = this.growth.addWantedBlock() ?? this.growth.growL1(size);
      // A raw data file reads as the disk does, also at its end.
      if (missing === undefined && this.header.rawDataFile && this.data.size() < size) {
        this.data.truncate(size, 'cluster-grow');
        this.state.markDataDirty();
      }
      return missing;
    });
  }

  /**
   * Bytes that a write at `guest` must replace as a whole: the subcluster where the cluster has a place that is only its
   * own, or none; all of it where it has a place that must not be changed, because only whole clusters have places.
   */
  writeUnit(guest: number): number {
    const { granule, clusterSize } = this;
    if (granule === clusterSize) return clusterSize;
    const word = this.entryWord(guest);
    if (typeof word === 'object') return granule;
    if (ownCluster(this.cache.words32, word, true) !== 0 || !namesPlace(this.cache.words32, word)) return granule;
    return clusterSize;
  }

  reserve(guest: number, length: number): Reservation | TableSlice | 'prepare' {
    const { clusterSize, granule } = this;
    if (this.header.dataFile !== undefined) {
      // Clusters of a data file lie where the guest sees them, so that it can be read without this image.
      return { offset: guest, length, fresh: false, kept: true };
    }
    const inCluster = guest % clusterSize;
    if (granule !== clusterSize) {
      const word = this.entryWord(guest);
      if (typeof word === 'object') return word;
      const host = ownCluster(this.cache.words32, word, true);
      if (host !== 0) {
        const left = Math.min(length, clusterSize - inCluster);
        return { offset: host + inCluster, length: left, fresh: false, kept: true };
      }
    }
    const place = this.refcounts.allocate(Math.ceil((inCluster + length) / clusterSize));
    if (place === 'prepare' || 'level' in place) return place;
    const got = Math.min(length, place.length - inCluster);
    return { offset: place.offset + inCluster, length: got, fresh: place.fresh };
  }

  release(reservation: Reservation): void {
    if (reservation.kept === true) return;
    const { offset, length } = reservation;
    this.drop(offset, length);
  }

  publish(guest: number, length: number, target: Target): TableSlice | undefined {
    const { cache, imageId, mapping } = this;
    const table = mapping.l1Entry(guest);
    if (typeof table === 'object') return table;
    if (table % 2 !== OWNED) throw new BlockError('IO', `publish at ${hex(guest)} without a table of its own`);
    const offset = mapping.sliceOffset(table, guest);
    const index = mapping.indexInSlice(guest);
    const count = Math.ceil(((guest % this.clusterSize) + length) / this.clusterSize);
    const slot = cache.find(imageId, offset, this.l2Hint);
    const claimed =
      slot < 0 ? -1 : cache.claim(slot, imageId, offset, index * mapping.entryBytes, count * mapping.entryBytes);
    if (claimed < 0) return mapping.slice(offset, 'l2');
    if (claimed === 1) this.state.addDirtySlots(1);
    this.l2Hint = slot;
    const word = slot * SLICE_WORDS + (index * mapping.entryBytes) / 4;
    const drop = (at: HostOffset, bytes: number) => this.drop(at, bytes);
    if (this.header.extendedL2) publishSubclusters(cache, mapping, word, guest, length, target, drop);
    else publishClusters(cache, mapping, word, guest, count, target, drop);
    return undefined;
  }

  /** One reference less for each cluster; those without any are cleaned first and then free. */
  giveBack(offset: HostOffset, length: number): void {
    for (let done = 0; done < length; ) {
      try {
        done += this.giveBackSome(offset + done, length - done);
      } catch (error) {
        if (done === 0) throw error;
        // A part is done and must not be counted down twice: the rest goes its way again.
        this.locked(() => this.growth.drop(offset + done, length - done));
        log('%s: %d bytes at %d are freed later: %s', this.storage.path, length - done, offset + done, error);
        return;
      }
    }
    this.state.markDataDirty();
  }

  readCompressed(mapping: Extract<Mapping, { kind: 'compressed' }>, cluster: Uint8Array): void {
    readCompressedCluster(this.header, this.storage, mapping, cluster);
  }

  growHostFile(end: HostOffset): void {
    if (this.header.dataFile === undefined) this.hostEnd.grow(alignUp(end, this.clusterSize));
  }

  cutTail(): void {
    this.hostEnd.cut();
    // Whole clusters were written; a raw data file is as long as the disk.
    const { virtualSize } = this.state;
    if (this.header.rawDataFile && this.data.size() > virtualSize) this.data.truncate(virtualSize, 'cluster-free');
  }

  writeHeader(fields: { dirty: boolean; virtualSize: number }): void {
    const bytes = encodeQcow2Fields(this.own.current(this.header, fields));
    this.storage.write(0, bytes, 0, bytes.length, 'header-update');
  }

  /** Takes one cluster for a table, with the refcount block that it may need. The meta mutex is held, the lock is not. */
  private allocateTable(): Place | TableSlice {
    for (;;) {
      const place = this.locked(() => this.refcounts.allocate(1));
      if (place !== 'prepare') return place;
      const missing = this.growth.addWantedBlock();
      if (missing !== undefined) return missing;
    }
  }

  /**
   * Gives `guest` an L2 table of its own: an empty one, or a copy of one that a snapshot shares. It is in the file before
   * memory names it, and durable before L1 on disk does (the flush syncs first). An empty table gets its host blocks now: a
   * full disk must be met by this write, not by the flush that everybody's data waits for.
   */
  private addTable(guest: number, shared: number): TableSlice | undefined {
    const { state, storage, clusterSize, refcounts } = this;
    const place = this.allocateTable();
    if ('level' in place) return place;
    let named = false;
    try {
      this.hostEnd.grow(place.offset + clusterSize);
      if (shared === 0) {
        if (!place.fresh) storage.punch(place.offset, clusterSize, 'l2-allocate');
        storage.allocate(place.offset, clusterSize, 'l2-allocate');
      } else {
        const missing = this.copyTable(shared, place.offset);
        if (missing !== undefined) return missing;
      }
      state.markDataDirty();
      const missing = this.locked(() => {
        refcounts.forgetTables(place.offset);
        const slice = this.nameTable(guest, place.offset);
        if (slice !== undefined) return slice;
        if (shared !== 0) this.growth.drop(shared, clusterSize);
        named = true;
        return undefined;
      });
      return missing;
    } finally {
      if (!named) this.locked(() => this.growth.drop(place.offset, clusterSize));
    }
  }

  /** Copies a table. What is in a table with several references has several itself: no entry of the copy may be written in place. */
  private copyTable(from: HostOffset, to: HostOffset): TableSlice | undefined {
    const { storage, clusterSize, mapping } = this;
    const count = this.locked(() => this.refcounts.get(from / clusterSize));
    if (typeof count === 'object') return count;
    const bytes = new Uint8Array(clusterSize);
    storage.read(from, bytes, 0, clusterSize);
    if (count !== 1) clearCopied(bytes, mapping.entryBytes);
    storage.write(to, bytes, 0, clusterSize, 'l2-allocate');
    return undefined;
  }

  /** Lets L1 name the table. Lock held exclusively. */
  private nameTable(guest: number, offset: HostOffset): TableSlice | undefined {
    const { cache, imageId, mapping, own, state } = this;
    const index = Math.floor(guest / mapping.tableSpan);
    const inSlice = index % (mapping.sliceBytes / 8);
    const sliceOffset = own.l1Offset + (index - inSlice) * 8;
    const slot = cache.find(imageId, sliceOffset, 0);
    const claimed = slot < 0 ? -1 : cache.claim(slot, imageId, sliceOffset, inSlice * 8, 8);
    if (claimed < 0) return mapping.slice(sliceOffset, 'l1');
    if (claimed === 1) state.addDirtySlots(1);
    const word = slot * SLICE_WORDS + inSlice * 2;
    cache.words32[word] = swap(highOf(offset) + COPIED);
    cache.words32[word + 1] = swap(lowOf(offset));
    return undefined;
  }

  private lookUpTable(guest: number): number | TableSlice {
    const { lock } = this.state;
    lock.lockShared();
    try {
      return this.mapping.l1Entry(guest);
    } finally {
      lock.unlockShared();
    }
  }

  /** Word of the L2 entry for `guest`, in a table of its own; or the slice to load. Lock held exclusively. */
  private entryWord(guest: number): number | TableSlice {
    const { mapping, cache } = this;
    const table = mapping.l1Entry(guest);
    if (typeof table === 'object') return table;
    if (table % 2 !== OWNED) throw new BlockError('IO', `no table of its own at ${hex(guest)}`);
    const offset = mapping.sliceOffset(table, guest);
    const slot = cache.find(this.imageId, offset, this.l2Hint);
    // Claimed, so that nobody evicts it while it is looked at; a change is about to follow anyway.
    const at = mapping.indexInSlice(guest) * mapping.entryBytes;
    const claimed = slot < 0 ? -1 : cache.claim(slot, this.imageId, offset, at, mapping.entryBytes);
    if (claimed < 0) return mapping.slice(offset, 'l2');
    if (claimed === 1) this.state.addDirtySlots(1);
    this.l2Hint = slot;
    return slot * SLICE_WORDS + at / 4;
  }

  /** Places in a data file are the guest's own: there is nothing to free, and the same place comes back. */
  private drop(offset: HostOffset, length: number): void {
    if (this.header.dataFile !== undefined) return;
    const start = alignDown(offset, this.clusterSize);
    this.growth.drop(start, alignUp(offset + length, this.clusterSize) - start);
  }

  /** Clusters from `offset` on with one reference, or a single one with several or none. @returns bytes done */
  private giveBackSome(offset: HostOffset, length: number): number {
    const { refcounts, clusterSize, storage } = this;
    const first = offset / clusterSize;
    const most = length / clusterSize;
    const counts = this.loading(() => {
      const count = refcounts.get(first);
      if (typeof count === 'object' || count !== 1) return count;
      let clusters = 1;
      while (clusters < most && refcounts.get(first + clusters) === 1) clusters++;
      return -clusters;
    });
    // Never counted: the rest of a place that could not be taken.
    if (counts === 0) return clusterSize;
    const clusters = Math.max(1, -counts);
    if (counts < 0) storage.punch(offset, clusters * clusterSize, 'cluster-free');
    let done = 0;
    try {
      this.loading(() => {
        for (; done < clusters; done++) {
          const left = refcounts.decrement(first + done);
          if (typeof left === 'object') return left;
          if (left > 0) continue;
          refcounts.forgetTables(offset + done * clusterSize);
          // Counted down by somebody else meanwhile, so that nobody has cleaned it: only the search may find it.
          if (counts < 0) refcounts.addFree(offset + done * clusterSize, clusterSize);
          else refcounts.searchAgain(first);
        }
        return 0;
      });
    } catch (error) {
      if (done === 0) throw error;
    }
    return done * clusterSize;
  }

  /** Runs `body` under the exclusive lock until it does not answer a slice to load. For the flush, which has no engine above it. */
  private loading(body: () => number | TableSlice): number {
    for (let attempt = 0; ; attempt++) {
      const result = this.locked(body);
      if (typeof result === 'number') return result;
      const read = (target: Uint8Array, at: number, length: number) => {
        this.storage.read(result.offset, target, at, length);
      };
      // Slices may also evict each other, where all but one slot of their set are dirty: the next flush tries again.
      if (attempt > LOADS_MAX || !this.cache.load(this.imageId, result, read)) {
        throw new BlockError(
          'IO',
          `Cannot free clusters of "${this.storage.path}" now: the table cache is full of changes`,
        );
      }
    }
  }

  private locked<T>(body: () => T): T {
    const { lock } = this.state;
    lock.lockExclusive();
    try {
      return body();
    } finally {
      lock.unlockExclusive();
    }
  }
}
