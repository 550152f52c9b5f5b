/**
 * The engine shared by all formats with tables: reads and in-place writes here, allocating writes in `remapper.ts`, the way
 * of tables to the file in `flush.ts`.
 */
import { BlockError } from '../errors';
import type { FormatDriver } from '../formats/driver';
import { logOf } from '../log';
import { type ImageState, NEED_CHECK_CLEAR } from '../shared/image-state';
import type { TableCache } from '../shared/table-cache';
import type { HostPlace } from '../storage/storage';
import { alignDown, alignUp, KIB, MIB, SECTOR_SIZE } from '../units';
import { CompressedWriter, compressorOf } from './compressed';
import { markingCorrupt, refuseCorrupt } from './corrupt';
import { DirtyBit } from './dirty-bit';
import { flushImage, refuseAfterFailure, sync } from './flush';
import { inflatedCluster } from './inflated';
import { type Below, DIRTY_BIT_DELAY_MS, FLUSH_DELAY_MS, type Layer, type LayerStatus } from './layer';
import { Mapper } from './mapper';
import { Remapper } from './remapper';

const log = logOf('cluster');
const ZEROES = new Uint8Array(64 * KIB);
/** Largest piece that `allocate` copies at once. */
const PIECE = MIB;
/** A close that gives nothing back any more, because the host file cannot be read, ends after so many flushes. */
const FINISH_FLUSHES_MAX = 64;

export class ClusterLayer implements Layer {
  readonly state: ImageState;
  readonly readOnly: boolean;
  readonly mapper: Mapper;
  private readonly clusterSize: number;
  private readonly dirtyBit: DirtyBit;
  private readonly remapper: Remapper;
  private readonly compressed: CompressedWriter;

  constructor(
    readonly driver: FormatDriver,
    readonly cache: TableCache,
    readonly imageId: number,
    readonly below: Below | undefined,
  ) {
    this.state = driver.state;
    this.clusterSize = driver.clusterSize;
    this.readOnly = driver.storage.readOnly;
    const flush = () => this.flush();
    this.mapper = new Mapper(driver, cache, imageId, flush);
    this.dirtyBit = new DirtyBit(driver, this.mapper);
    this.remapper = new Remapper(driver, cache, this.mapper, this.dirtyBit, below, flush, (guest, target, at, length) =>
      this.readRuns(guest, target, at, length),
    );
    this.compressed = new CompressedWriter(driver, this.mapper, this.remapper);
  }

  size(): number {
    return this.state.virtualSize;
  }

  read(guest: number, target: Uint8Array, at: number, length: number): void {
    if (this.readOnly) {
      this.readRuns(guest, target, at, length);
      return;
    }
    this.state.records.begin();
    try {
      this.readRuns(guest, target, at, length);
    } finally {
      this.state.records.end();
    }
  }

  prefetch(guest: number, length: number): void {
    const { driver } = this;
    this.guarded(() => {
      for (let done = 0; done < length; ) {
        const mapping = this.mapper.peek(guest + done, length - done);
        if (mapping.kind === 'miss') {
          // Where the data lies is for the read to find out.
          driver.storage.prefetch(mapping.slice.offset, mapping.slice.length);
          return;
        }
        if (mapping.kind === 'data') driver.data.prefetch(mapping.offset, mapping.length);
        else if (mapping.kind === 'unallocated') this.below?.prefetch(guest + done, mapping.length);
        else if (mapping.kind === 'compressed') driver.storage.prefetch(mapping.offset, mapping.bytes);
        done += mapping.length;
      }
    });
  }

  holding(body: () => void): void {
    this.guarded(body);
  }

  locate(guest: number, length: number, place: HostPlace): boolean {
    const mapping = this.mapper.peek(guest, length);
    if (mapping.kind === 'miss' || mapping.length < length) return false;
    if (mapping.kind === 'data') return this.driver.data.locate(mapping.offset, place);
    return mapping.kind === 'unallocated' && this.below?.locateBelow(guest, length, place) === true;
  }

  write(guest: number, source: Uint8Array, at: number, length: number): void {
    this.change(guest + length, () => this.writeRuns(guest, source, at, length));
  }

  writeCompressed(guest: number, source: Uint8Array, at: number, length: number): void {
    compressorOf(this.driver);
    this.change(guest + length, () => {
      for (let done = 0; done < length; done += this.clusterSize) {
        const bytes = Math.min(this.clusterSize, length - done);
        const isDone = this.compressed.write(guest + done, source, at + done, bytes);
        if (!isDone) this.writeRuns(guest + done, source, at + done, bytes);
      }
    });
  }

  writeZeroes(guest: number, length: number): void {
    this.zeroRange(guest, length);
  }

  allocate(guest: number, length: number): void {
    const { state, driver } = this;
    this.change(guest + length, () => {
      const end = Math.min(alignUp(guest + length, driver.granule), state.virtualSize);
      for (let at = alignDown(guest, driver.granule); at < end; ) {
        const mapping = this.mapper.lookUpForChange(at, end - at);
        if (mapping.kind === 'data' && mapping.writable) {
          driver.data.allocate(mapping.offset, mapping.length, 'data-write');
          state.markDataDirty();
          at += mapping.length;
        } else {
          at += this.remapper.write(at, Math.min(mapping.length, PIECE), undefined, 0);
        }
      }
    });
  }

  flush(): void {
    this.state.flushGate.pass(() => flushImage(this.driver, this.cache, this.imageId));
  }

  resize(size: number): void {
    const { state, driver } = this;
    refuseAfterFailure(driver);
    refuseCorrupt(driver);
    if (size > driver.maxVirtualSize) {
      const { path } = driver.storage;
      throw new BlockError(
        'LIMIT_EXCEEDED',
        `Cannot grow "${path}" to ${size} bytes: its tables reach ${driver.maxVirtualSize}`,
        { path },
      );
    }
    state.resizeMutex.with(() => {
      const old = state.virtualSize;
      if (size <= old) return;
      markingCorrupt(driver, () => this.growTables(size));
      // The new part reads zero, also where the backing file goes on behind the old end, or where another program shrank the
      // disk and left entries. They harm nobody, so they go first: a crash before the header is written leaves the disk as it was.
      this.zeroRange(old, size - old, size);
      this.flush();
      state.metaMutex.with(() => {
        driver.writeHeader({ dirty: state.needCheck !== NEED_CHECK_CLEAR, virtualSize: size });
        sync(driver, driver.storage, 'flush-header');
        this.mapper.locked(() => {
          state.virtualSize = size;
        });
      });
    });
  }

  private growTables(size: number): void {
    for (let attempt = 0; ; attempt++) {
      const first = this.driver.growTables?.(size);
      if (first === undefined) return;
      if (first === 'flush') this.flush();
      else this.mapper.load(first, attempt);
    }
  }

  status(guest: number, maxLength: number): LayerStatus {
    return this.guarded(() => this.withHoles(this.mapper.lookUp(guest, maxLength)));
  }

  /** A request as any other: the tables that it looks at are not freed meanwhile. */
  protected guarded<T>(body: () => T): T {
    if (this.readOnly) return body();
    this.state.records.begin();
    try {
      return body();
    } finally {
      this.state.records.end();
    }
  }

  /** Cuts a run of data where a hole of the host's file begins or ends. Snapshots ask this of the live disk. */
  withHoles(status: LayerStatus): LayerStatus {
    if (status.kind !== 'data' || this.driver.hasHostHoles?.() !== true) return status;
    const { offset, length } = status;
    const { data } = this.driver;
    const next = alignDown(data.nextData(offset), SECTOR_SIZE);
    if (next > offset) return { ...status, length: Math.min(length, next - offset), hole: true };
    const hole = alignUp(data.nextHole(offset), SECTOR_SIZE);
    return hole > offset ? { ...status, length: Math.min(length, hole - offset) } : status;
  }

  maintain(nowMs: number): void {
    const { state } = this;
    if (this.readOnly || state.failed) return;
    const old = state.dirtySince !== 0 && nowMs - state.dirtySince >= FLUSH_DELAY_MS;
    if (old || (this.cache.halfDirty && state.dirtySlots > 0)) this.flush();
    if (!this.driver.usesDirtyBit || state.needCheck === NEED_CHECK_CLEAR) return;
    if (nowMs - state.lastAllocation >= DIRTY_BIT_DELAY_MS) this.dirtyBit.clear();
  }

  finish(): void {
    if (this.readOnly) return;
    // The first one gives back what was dropped last, the next makes that durable. Freeing changes counts, and a small cache has room
    // for some at a time: what finds none waits for the flush after.
    for (let flushes = 0; flushes < 2 || (this.hasLeftovers && flushes < FINISH_FLUSHES_MAX); flushes++) this.flush();
    try {
      this.driver.cutTail();
    } finally {
      // Everything is durable; a tail that could not be cut is a leak and no reason for a check.
      if (this.driver.usesDirtyBit) this.dirtyBit.clear();
    }
    if (!this.driver.usesDirtyBit || this.state.needCheck === NEED_CHECK_CLEAR) return;
    const { path } = this.driver.storage;
    throw new BlockError('IO', `Cannot mark "${path}" as cleanly closed: it still has unflushed tables`, { path });
  }

  /** Places are still to be given back, or their counts to be written. */
  private get hasLeftovers(): boolean {
    const { dropped, retired, dirtySlots } = this.state;
    return dropped.count > 0 || retired.count > 0 || dirtySlots > 0;
  }

  private writeRuns(guest: number, source: Uint8Array, at: number, length: number): void {
    const { state, driver } = this;
    for (let done = 0; done < length; ) {
      const mapping = this.mapper.lookUpForChange(guest + done, length - done);
      if (mapping.kind === 'data' && mapping.writable) {
        try {
          driver.data.write(mapping.offset, source, at + done, mapping.length, 'data-write');
        } finally {
          state.markDataDirty();
        }
        done += mapping.length;
      } else {
        done += this.remapper.write(guest + done, length - done, source, at + done);
      }
    }
  }

  protected readRuns(guest: number, target: Uint8Array, at: number, length: number): void {
    for (let done = 0; done < length; ) {
      const mapping = this.mapper.lookUp(guest + done, length - done);
      const to = at + done;
      if (mapping.kind === 'data') {
        this.driver.data.read(mapping.offset, target, to, mapping.length);
      } else if (mapping.kind === 'unallocated' && this.below !== undefined) {
        this.below.readBelow(guest + done, target, to, mapping.length);
      } else if (mapping.kind === 'compressed') {
        this.readCompressed(mapping, guest + done, target, to);
      } else {
        target.fill(0, to, to + mapping.length);
      }
      done += mapping.length;
    }
  }

  private readCompressed(
    mapping: Extract<LayerStatus, { kind: 'compressed' }>,
    guest: number,
    target: Uint8Array,
    to: number,
  ): void {
    const cluster = inflatedCluster(this.state, mapping.offset, this.clusterSize, (target) => {
      this.driver.readCompressed?.(mapping, target);
    });
    const from = guest % this.clusterSize;
    target.set(cluster.subarray(from, from + mapping.length), to);
  }

  /** @param growsTo end of the disk when this is done, if it is about to grow: a cluster that the end cuts counts as whole */
  private zeroRange(guest: number, length: number, growsTo?: number): void {
    const { granule } = this.driver;
    const end = guest + length;
    const zero = () => {
      const diskEnd = growsTo ?? this.state.virtualSize;
      let wholeEnd = end === diskEnd ? alignUp(end, granule) : alignDown(end, granule);
      for (let at = guest; at < end; ) {
        const inGranule = at % granule;
        if (inGranule !== 0 || wholeEnd <= at) at += this.zeroInside(at, Math.min(end - at, granule - inGranule));
        else {
          const done = this.zeroWhole(at, Math.min(end, wholeEnd) - at);
          // The disk has grown meanwhile: the rest of the last granule may be somebody's by now.
          if (done === 0) wholeEnd = alignDown(end, granule);
          at += done;
        }
      }
    };
    this.change(end, zero, growsTo);
  }

  /** A request that changes the disk up to `end`. */
  private change(end: number, body: () => void, diskEnd?: number): void {
    markingCorrupt(this.driver, () => {
      this.begin(end, diskEnd);
      try {
        body();
      } finally {
        this.state.records.end();
      }
    });
    this.relieve();
  }

  /** A request that changes the disk begins. Its range was inside the disk when somebody looked, perhaps before a revert. */
  private begin(end: number, diskEnd?: number): void {
    const { state } = this;
    refuseCorrupt(this.driver);
    state.records.begin();
    if (end <= (diskEnd ?? state.virtualSize)) return;
    state.records.end();
    const { path } = this.driver.storage;
    throw new BlockError(
      'OUT_OF_BOUNDS',
      `Cannot write to "${path}" up to ${end}: the disk ends at ${state.virtualSize} by now`,
      { path, offset: end },
    );
  }

  /** Whole granules from `guest` (the last one perhaps cut by the end of the disk) read zero afterwards. @returns bytes done; 0: the disk has grown */
  private zeroWhole(guest: number, length: number): number {
    const { driver } = this;
    const mapping = this.mapper.lookUp(guest, length);
    if (this.readsZero(mapping, guest)) return mapping.length;
    if (driver.zeroesInPlace && mapping.kind === 'data' && mapping.writable) return this.zeroInside(guest, length);
    // No entry can say it: without zero clusters, or where the rest of a compressed cluster stays.
    const cannotPoint =
      (this.below !== undefined && !driver.hasZeroClusters) ||
      (mapping.kind === 'compressed' && driver.granule !== driver.clusterSize);
    if (cannotPoint) return this.zeroInside(guest, length);
    const inSlice = Math.min(mapping.length, driver.sliceSpan - (guest % driver.sliceSpan));
    const target = this.below === undefined ? { kind: 'unallocated' as const } : { kind: 'zero' as const };
    return this.remapper.point(guest, inSlice, target) ? inSlice : 0;
  }

  /** Part of one granule reads zero afterwards. @returns bytes done */
  private zeroInside(guest: number, length: number): number {
    const mapping = this.mapper.lookUpForChange(guest, length);
    if (this.readsZero(mapping, guest)) return mapping.length;
    if (mapping.kind === 'data' && mapping.writable) {
      this.driver.data.punch(mapping.offset, mapping.length, 'data-write');
      this.state.markDataDirty();
      return mapping.length;
    }
    return this.remapper.write(guest, Math.min(mapping.length, ZEROES.length), ZEROES, 0);
  }

  private readsZero(mapping: LayerStatus, guest: number): boolean {
    if (mapping.kind === 'zero') return true;
    return mapping.kind === 'unallocated' && (this.below === undefined || guest >= this.below.size());
  }

  /** More than half of the cache is dirty: writes it back. The write that came here has succeeded; a failure is the next flush's to tell. */
  private relieve(): void {
    if (!this.cache.halfDirty || this.state.dirtySlots === 0) return;
    try {
      this.flush();
    } catch (error) {
      log('early flush of %s failed: %s', this.driver.storage.path, error);
    }
  }
}
