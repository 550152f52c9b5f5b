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
import { type FormatDriver, type HostOffset, type Mapping, type Reservation, TableError, type Target } from '../driver';
import { HostEnd } from '../host-end';
import { markBitmapsOfOtherSize } from './bitmap-codec';
import { readCompressedCluster } from './compressed';
import { Qcow2Compressor } from './compressor';
import { COPIED, clearCopied, highOf, lowOf, swap } from './entry';
import { GiveBack } from './give-back';
import { Growth } from './growth';
import { encodeQcow2Fields } from './header';
import { maxVirtualSize, QCOW2_CAPABILITIES, type Qcow2Header } from './layout';
import { OWNED, Qcow2Mapping, SLICE_WORDS } from './mapping';
import { dropOld, namesPlace, ownCluster, publishClusters, publishCompressed, publishSubclusters } from './publish';
import { type Place, Refcounts } from './refcounts';
import { Qcow2Snapshots } from './snapshots';
import { Qcow2State } from './state';

const log = logOf('qcow2');

export class Qcow2Driver implements FormatDriver {
  readonly format = 'qcow2';
  readonly capabilities = QCOW2_CAPABILITIES;
  readonly clusterSize: number;
  readonly granule: number;
  /** Counts on disk are never too low (see refcounts.ts): the bit is needed only while snapshots change, and set there. */
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
  readonly compressor: Qcow2Compressor | undefined;
  private readonly giver: GiveBack;
  private readonly hostEnd: HostEnd;
  private l2Hint = 0;
  private hostHoles: boolean | undefined;

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
    if (!storage.readOnly) refcounts.rememberBlocks();
    this.giver = new GiveBack(storage, state, refcounts, cache, imageId, header.clusterSize);
    this.growth = new Growth(header, storage, state, own, refcounts, cache, imageId, hostEnd);
    // Data files hold what the guest sees. What is in them is overwritten in place: no snapshot could keep it.
    this.compressor =
      header.dataFile === undefined ? new Qcow2Compressor(header, storage.path, state, own, refcounts) : undefined;
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
    const { header, storage, state } = this;
    return state.metaMutex.with(() => {
      if (header.bitmaps !== undefined && markBitmapsOfOtherSize(storage, header.bitmaps, this.clusterSize, size)) {
        state.markDataDirty();
      }
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
    // Whatever an entry says: a table that is in use is not given up.
    const refuse = (at: HostOffset, bytes: number) => this.refuseTables(at, bytes);
    for (let i = 0; i < count; i++) {
      dropOld(cache.words32, word + (i * mapping.entryBytes) / 4, mapping, guest + i * this.clusterSize, refuse);
    }
    const drop = (at: HostOffset, bytes: number) => this.drop(at, bytes);
    if (target.kind === 'compressed') publishCompressed(cache.words32, mapping, word, guest, target, drop);
    else if (this.header.extendedL2) publishSubclusters(cache, mapping, word, guest, length, target, drop);
    else publishClusters(cache, mapping, word, guest, count, target, drop);
    return undefined;
  }

  giveBack(offset: HostOffset, length: number): void {
    this.giver.giveBack(offset, length);
  }

  readCompressed(mapping: Extract<Mapping, { kind: 'compressed' }>, cluster: Uint8Array): void {
    readCompressedCluster(this.header, this.storage, mapping, cluster);
  }

  growHostFile(end: HostOffset): void {
    if (this.header.dataFile === undefined) this.hostEnd.grow(alignUp(end, this.clusterSize));
  }

  /** Looked at once: to know it of each run costs a call of the host. A data file is not looked at, as QEMU has it. */
  hasHostHoles(): boolean {
    if (this.hostHoles === undefined) {
      const { header, storage, clusterSize } = this;
      const [size, allocated] = [storage.size(), storage.allocatedBytes()];
      const dense = Math.max((allocated * 10) / 9, allocated + 2 * clusterSize);
      this.hostHoles = header.dataFile === undefined && size >= dense;
    }
    return this.hostHoles;
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

  refuseTables(offset: HostOffset, length: number): void {
    const { own, refcounts, clusterSize } = this;
    if (this.header.dataFile !== undefined) return;
    const start = alignDown(offset, clusterSize);
    const where = own.tablesIn(start, offset + length - start, clusterSize) ?? refcounts.knownTableIn(offset, length);
    if (where === undefined) return;
    const { path } = this.storage;
    const message = `Cannot write to qcow2 image "${path}": guest data at ${hex(offset)} would overwrite ${where}; run "imagefs check"`;
    throw new TableError(message, path, offset);
  }

  markCorrupt(): void {
    const { state, storage } = this;
    state.metaMutex.with(() => {
      if (state.corrupt) return;
      log('%s: marking the image corrupt', storage.path);
      // Nobody begins a change any more, also when the header cannot be written.
      state.markCorrupt();
      // Version 2 has no bit for it.
      if (this.header.version > 2) this.growth.publishHeader({});
    });
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
      const table = this.mapping.l1Entry(guest);
      if (typeof table === 'number' && table !== 0) this.refuseForeignTable(table - (table % 2), guest);
      return table;
    } finally {
      lock.unlockShared();
    }
  }

  /**
   * Entries would be written there: it must not be something else. Asked each time: it may become that, where counts are wrong. The lock
   * is held.
   */
  private refuseForeignTable(table: HostOffset, guest: number): void {
    const { own, refcounts, mapping, clusterSize } = this;
    const where =
      own.tablesIn(table, clusterSize, clusterSize) ??
      refcounts.knownTableIn(mapping.sliceOffset(table, guest), 1, 'l2');
    if (where !== undefined) throw mapping.corruptEntry('L1', guest, `table offset ${hex(table)} (${where})`);
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
    const end = alignUp(offset + length, this.clusterSize);
    this.growth.drop(start, end - start);
    this.refcounts.endStreams(start / this.clusterSize, (end - start) / this.clusterSize);
  }

  private locked<T>(body: () => T): T {
    return this.state.lock.withExclusive(body);
  }
}
