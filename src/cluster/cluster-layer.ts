/**
 * The engine shared by all formats with tables: reads, in-place writes, and the way of an allocating write:
 *
 *   reserve   under the exclusive lock: places for the clusters; nothing reads differently yet
 *   fill      without a lock: what the first and last cluster keep from below, and the new bytes, written to the places
 *   publish   under the exclusive lock: the tables in memory point to the places
 *
 * A failure in between gives the places back: nothing to undo. Readers see the old mapping until it is published. The
 * request's record keeps other remapping requests off its clusters meanwhile. Tables reach the file by `flush.ts`.
 */
import { BlockError } from '../errors';
import type { FormatDriver, Mapping, Reservation, Target } from '../formats/driver';
import { type ImageState, NEED_CHECK_CLEAR, NEED_CHECK_SET } from '../shared/image-state';
import type { TableCache, TableSlice } from '../shared/table-cache';
import { alignDown, alignUp, KIB, MIB } from '../units';
import { logOf } from '../log';
import { flushImage, refuseAfterFailure, sync } from './flush';
import { type Below, DIRTY_BIT_DELAY_MS, FLUSH_DELAY_MS, type Layer, type LayerStatus } from './layer';

/** Up to this size a cluster with kept bytes is put together in memory and written at once; larger ones in pieces. */
const ASSEMBLE_MAX = 256 * KIB;
const PIECE = MIB;
/** Flush before a request could drop more places than the queue still holds: one slice has 2,048 entries. */
const DROP_ROOM = 2048;
/** Attempts to load one slice while others keep evicting it, before we say that the cache is too small. */
const LOAD_ATTEMPTS = 10_000;

/** This thread's buffers; no request of a thread runs inside another one's. */
let scratchBytes = new Uint8Array(0);
function scratch(length: number): Uint8Array {
  if (scratchBytes.length < length) scratchBytes = new Uint8Array(alignUp(length, 64 * KIB));
  return scratchBytes;
}
/** Never notified: waiting on it is a pause of the time-out, milliseconds. */
const PAUSE = new Int32Array(new SharedArrayBuffer(4));
const log = logOf('cluster');
const ZEROES = new Uint8Array(64 * KIB);

type Run = { kind: 'data' | 'zero' | 'unallocated'; length: number; firstKind: Mapping['kind']; lastKind: Mapping['kind'] };

export class ClusterLayer implements Layer {
  readonly state: ImageState;
  private readonly clusterSize: number;
  private readonly readOnly: boolean;

  constructor(
    private readonly driver: FormatDriver,
    private readonly cache: TableCache,
    private readonly imageId: number,
    private readonly below: Below | undefined,
  ) {
    this.state = driver.state;
    this.clusterSize = driver.clusterSize;
    this.readOnly = driver.storage.readOnly;
  }

  read(guest: number, target: Uint8Array, at: number, length: number): void {
    if (this.readOnly) return this.readRuns(guest, target, at, length);
    this.state.records.begin();
    try {
      this.readRuns(guest, target, at, length);
    } finally {
      this.state.records.end();
    }
  }

  write(guest: number, source: Uint8Array, at: number, length: number): void {
    const { state, driver } = this;
    state.records.begin();
    try {
      for (let done = 0; done < length; ) {
        const mapping = this.lookUp(guest + done, length - done);
        if (mapping.kind === 'data' && mapping.writable) {
          driver.storage.write(mapping.offset, source, at + done, mapping.length, 'data-write');
          state.markDataDirty();
          done += mapping.length;
        } else {
          done += this.remap(guest + done, length - done, source, at + done);
        }
      }
    } finally {
      state.records.end();
    }
    this.relieve();
  }

  writeZeroes(guest: number, length: number): void {
    this.zeroRange(guest, length, this.state.virtualSize);
  }

  allocate(guest: number, length: number): void {
    const { state, driver, clusterSize } = this;
    state.records.begin();
    try {
      const end = Math.min(alignUp(guest + length, clusterSize), alignUp(state.virtualSize, clusterSize));
      for (let at = alignDown(guest, clusterSize); at < end; ) {
        const mapping = this.lookUp(at, Math.min(end, state.virtualSize) - at);
        if (mapping.kind === 'data') {
          driver.storage.allocate(mapping.offset, mapping.length, 'data-write');
          state.markDataDirty();
          at += alignUp(mapping.length, clusterSize);
        } else {
          at += alignUp(this.remap(at, Math.min(mapping.length, PIECE), undefined, 0), clusterSize);
        }
      }
    } finally {
      state.records.end();
    }
    this.relieve();
  }

  flush(): void {
    this.state.flushGate.pass(() => flushImage(this.driver, this.cache, this.imageId));
  }

  resize(size: number): void {
    const { state, driver, below } = this;
    if (size > driver.maxVirtualSize) {
      const { path } = driver.storage;
      throw new BlockError('LIMIT_EXCEEDED', `Cannot grow "${path}" to ${size} bytes: its tables reach ${driver.maxVirtualSize}`, { path });
    }
    state.resizeMutex.with(() => {
      const old = state.virtualSize;
      if (size <= old) return;
      // The new part reads zero, also where the backing file goes on behind the old end. Entries behind the end of the disk
      // harm nobody, so they come first: a crash before the header is written leaves the disk as it was.
      if (below !== undefined && below.size() > old) {
        this.zeroRange(old, Math.min(size, below.size()) - old, size);
        this.flush();
      }
      state.metaMutex.with(() => {
        driver.writeHeader({ dirty: state.needCheck === NEED_CHECK_SET, virtualSize: size });
        sync(driver, 'flush-header');
        this.locked(() => {
          state.virtualSize = size;
        });
      });
    });
  }

  status(guest: number, maxLength: number): LayerStatus {
    return this.lookUp(guest, maxLength);
  }

  maintain(nowMs: number): void {
    const { state } = this;
    if (this.readOnly || state.failed) return;
    const old = state.dirtySince !== 0 && nowMs - state.dirtySince >= FLUSH_DELAY_MS;
    if (old || this.cache.halfDirty) this.flush();
    const bitIsOld = state.needCheck === NEED_CHECK_SET && nowMs - state.lastAllocation >= DIRTY_BIT_DELAY_MS;
    if (bitIsOld && this.driver.usesDirtyBit) this.clearDirtyBit();
  }

  finish(): void {
    const { state, driver } = this;
    if (this.readOnly) return;
    this.flush();
    this.flush(); // The first one retired what was dropped last; nobody holds it now, so this one frees it.
    state.lock.lockExclusive();
    let end = state.fileEnd;
    try {
      end = state.free.takeEndingAt(end);
      state.fileEnd = end;
    } finally {
      state.lock.unlockExclusive();
    }
    // Longer only if we made it so; what lies behind is free. Not synced: after a crash the tail is back, as a leak.
    if (state.hostSize > end) {
      driver.storage.truncate(end, 'cluster-free');
      state.hostSize = end;
    }
    if (state.needCheck === NEED_CHECK_SET) this.clearDirtyBit();
  }

  private readRuns(guest: number, target: Uint8Array, at: number, length: number): void {
    for (let done = 0; done < length; ) {
      const mapping = this.lookUp(guest + done, length - done);
      const to = at + done;
      if (mapping.kind === 'data') this.driver.storage.read(mapping.offset, target, to, mapping.length);
      else if (mapping.kind === 'unallocated' && this.below !== undefined) {
        this.below.readBelow(guest + done, target, to, mapping.length);
      } else target.fill(0, to, to + mapping.length);
      done += mapping.length;
    }
  }

  /** The mapping at `guest`, with its table loaded if need be. Holds no lock on return. */
  private lookUp(guest: number, maxLength: number): LayerStatus {
    for (let attempt = 0; attempt < LOAD_ATTEMPTS; attempt++) {
      const mapping = this.mapLocked(guest, maxLength);
      if (mapping.kind !== 'miss') return mapping;
      this.load(mapping.slice);
    }
    throw this.cacheTooSmall();
  }

  private mapLocked(guest: number, maxLength: number): Mapping {
    // Nobody changes the tables of a read-only layer, so there is nothing to lock; evictions are seen by the driver.
    if (this.readOnly) return this.driver.map(guest, maxLength);
    this.state.lock.lockShared();
    try {
      return this.driver.map(guest, maxLength);
    } finally {
      this.state.lock.unlockShared();
    }
  }

  private load(slice: TableSlice): void {
    const { storage } = this.driver;
    const read = (target: Uint8Array, at: number, length: number) => {
      storage.read(slice.offset, target, at, length);
    };
    for (let attempt = 0; attempt < LOAD_ATTEMPTS; attempt++) {
      if (this.cache.load(this.imageId, slice, read)) return;
      // Every slot it may lie in is dirty, perhaps with another image's tables: that image's own flush frees them.
      if (!this.readOnly) this.flush();
      Atomics.wait(PAUSE, 0, 0, 1);
    }
    throw this.cacheTooSmall();
  }

  private cacheTooSmall(): BlockError {
    const { path } = this.driver.storage;
    return new BlockError('LIMIT_EXCEEDED', `Cannot load a table of "${path}": the table cache is full; give a larger --cache-size`, { path });
  }

  /**
   * Gives the clusters at `guest` a place of their own and writes `length` bytes of `source` there (undefined: only what
   * they read as now). Handles one run of clusters of one table slice. @returns bytes done, at most `length`
   */
  private remap(guest: number, length: number, source: Uint8Array | undefined, at: number): number {
    const { state, driver, clusterSize } = this;
    const start = alignDown(guest, clusterSize);
    this.makeRoom(guest);
    state.records.startRemap(start, alignUp(guest + length, clusterSize));
    try {
      const { run, reservation } = this.reserveRun(guest, length, source !== undefined);
      if (reservation === undefined) {
        // Somebody who came earlier has allocated it meanwhile: an ordinary write, from the start.
        return source === undefined ? run.length : 0;
      }
      const done = Math.min(run.length, start + reservation.length - guest);
      try {
        driver.growHostFile(reservation.offset + reservation.length);
        this.fill(reservation, start, guest, done, source, at, run);
        state.markDataDirty();
      } catch (error) {
        this.locked(() => driver.release(reservation));
        throw error;
      }
      this.publish(start, reservation.length, { kind: 'data', offset: reservation.offset }, reservation);
      return done;
    } finally {
      state.records.endRemap();
    }
  }

  /** Everything that needs I/O before places can be reserved at `guest`. No lock is held. */
  private makeRoom(guest: number): void {
    const { state, driver } = this;
    refuseAfterFailure(driver);
    if (state.dropped.capacity - state.dropped.count < DROP_ROOM) this.flush();
    this.setDirtyBit();
    for (let attempt = 0; attempt < LOAD_ATTEMPTS; attempt++) {
      const missing = driver.prepareTables(guest);
      if (missing === undefined) return;
      this.load(missing);
    }
    throw this.cacheTooSmall();
  }

  /** Finds the run of clusters at `guest` that need a place and reserves it; no reservation when it is data already. */
  private reserveRun(guest: number, length: number, mixed: boolean): { run: Run; reservation?: Reservation } {
    const { state, driver, clusterSize } = this;
    const start = alignDown(guest, clusterSize);
    for (;;) {
      let missing: TableSlice | undefined;
      state.lock.lockExclusive();
      try {
        // The bit may have gone off since `makeRoom`: set it again before anything depends on it.
        if (!driver.usesDirtyBit || state.needCheck === NEED_CHECK_SET) {
          const run = this.runToRemap(guest, length, mixed);
          if ('offset' in run) missing = run;
          else if (run.kind === 'data') return { run };
          else return { run, reservation: driver.reserve(alignUp(guest + run.length, clusterSize) - start) };
        }
      } finally {
        state.lock.unlockExclusive();
      }
      if (missing === undefined) this.setDirtyBit();
      else this.load(missing);
    }
  }

  /**
   * Zero and unallocated clusters from `guest` on, in one slice; or the data run there; or the slice to load. Lock held.
   * @param mixed may be of both kinds: true when the guest overwrites all but the ends
   */
  private runToRemap(guest: number, maxLength: number, mixed: boolean): Run | TableSlice {
    const { driver } = this;
    const length = Math.min(maxLength, driver.sliceSpan - (guest % driver.sliceSpan));
    const first = driver.map(guest, length);
    if (first.kind === 'miss') return first.slice;
    const run: Run = { kind: first.kind, length: first.length, firstKind: first.kind, lastKind: first.kind };
    if (first.kind === 'data') return run;
    while (mixed && run.length < length) {
      const next = driver.map(guest + run.length, length - run.length);
      if (next.kind === 'miss' || next.kind === 'data') break;
      run.length += next.length;
      run.lastKind = next.kind;
    }
    return run;
  }

  /**
   * Writes the reserved places: the guest's bytes, and around them what the first and last cluster keep: from below where
   * they were unallocated, zeroes where they were zero clusters (never the backing file: it is hidden).
   */
  private fill(place: Reservation, start: number, guest: number, length: number, source: Uint8Array | undefined, at: number, run: Run): void {
    const { storage } = this.driver;
    const end = start + place.length;
    const bodyEnd = source === undefined ? guest : guest + length;
    const head = this.keeps(run.firstKind, start, guest, place.fresh);
    const tail = this.keeps(run.lastKind, bodyEnd, end, place.fresh);
    if ((head || tail) && place.length <= ASSEMBLE_MAX) {
      const from = head ? start : guest;
      const to = tail ? end : bodyEnd;
      const bytes = scratch(to - from);
      if (head) this.readKept(run.firstKind, start, bytes, 0, guest - start);
      if (source !== undefined) bytes.set(source.subarray(at, at + length), guest - from);
      if (tail) this.readKept(run.lastKind, bodyEnd, bytes, bodyEnd - from, end - bodyEnd);
      storage.write(place.offset + (from - start), bytes, 0, to - from, 'cow-write');
      return;
    }
    if (head) this.copyKept(run.firstKind, start, guest, place.offset);
    if (source !== undefined) storage.write(place.offset + (guest - start), source, at, length, 'data-write');
    if (tail) this.copyKept(run.lastKind, bodyEnd, end, place.offset + (bodyEnd - start));
    if (source === undefined) storage.allocate(place.offset, place.length, 'data-write');
  }

  /** Must `[from, to)` of the place be written? Not if it is empty, or reads zero both before and after. */
  private keeps(kind: Mapping['kind'], from: number, to: number, fresh: boolean): boolean {
    if (from >= to) return false;
    if (!fresh) return true;
    return kind === 'unallocated' && this.below !== undefined && from < this.below.size();
  }

  /** What the guest reads at `[from, from + length)` now; zeroes past the end of the disk. */
  private readKept(kind: Mapping['kind'], from: number, target: Uint8Array, at: number, length: number): void {
    const inside = kind === 'unallocated' && this.below !== undefined ? Math.min(length, this.state.virtualSize - from) : 0;
    if (inside > 0) this.below?.readBelow(from, target, at, inside);
    target.fill(0, at + Math.max(0, inside), at + length);
  }

  private copyKept(kind: Mapping['kind'], from: number, to: number, offset: number): void {
    for (let done = 0; done < to - from; done += PIECE) {
      const length = Math.min(PIECE, to - from - done);
      const bytes = scratch(PIECE);
      this.readKept(kind, from + done, bytes, 0, length);
      this.driver.storage.write(offset + done, bytes, 0, length, 'cow-write');
    }
  }

  /** Publishes whole clusters, loading the table as often as it is evicted under us. */
  private publish(start: number, length: number, target: Target, reservation?: Reservation): void {
    const { state, driver } = this;
    try {
      for (;;) {
        const missing = this.locked(() => {
          const slice = driver.publish(start, length, target);
          if (slice === undefined) {
            if (reservation !== undefined) state.reserved--;
            state.lastAllocation = Date.now();
          }
          return slice;
        });
        if (missing === undefined) return;
        this.load(missing);
      }
    } catch (error) {
      if (reservation !== undefined) this.locked(() => driver.release(reservation));
      throw error;
    }
  }

  /** @param diskEnd a cluster that reaches past it counts as whole when the range reaches it */
  private zeroRange(guest: number, length: number, diskEnd: number): void {
    const { state, clusterSize } = this;
    const end = guest + length;
    const wholeEnd = end === diskEnd ? alignUp(end, clusterSize) : alignDown(end, clusterSize);
    state.records.begin();
    try {
      for (let at = guest; at < end; ) {
        const clusterEnd = alignDown(at, clusterSize) + clusterSize;
        if (at % clusterSize !== 0 || wholeEnd <= at) at += this.zeroInsideCluster(at, Math.min(end, clusterEnd) - at);
        else at += this.zeroClusters(at, Math.min(end, wholeEnd) - at);
      }
    } finally {
      state.records.end();
    }
    this.relieve();
  }

  /** Whole clusters from `guest` (the last one perhaps cut by the end of the disk) read zero afterwards. @returns bytes done */
  private zeroClusters(guest: number, length: number): number {
    const { state, driver, clusterSize } = this;
    const mapping = this.lookUp(guest, length);
    if (mapping.kind === 'zero' || (mapping.kind === 'unallocated' && !this.hasBelow(guest))) return mapping.length;
    const inSlice = Math.min(mapping.length, driver.sliceSpan - (guest % driver.sliceSpan));
    const whole = alignUp(inSlice, clusterSize);
    this.makeRoom(guest);
    state.records.startRemap(guest, guest + whole);
    try {
      this.publish(guest, whole, this.below === undefined ? { kind: 'unallocated' } : { kind: 'zero' });
    } finally {
      state.records.endRemap();
    }
    return inSlice;
  }

  /** Part of one cluster reads zero afterwards. @returns bytes done */
  private zeroInsideCluster(guest: number, length: number): number {
    const { state, driver } = this;
    const mapping = this.lookUp(guest, length);
    if (mapping.kind === 'zero') return mapping.length;
    if (mapping.kind === 'unallocated' && !this.hasBelow(guest)) return mapping.length;
    if (mapping.kind === 'data' && mapping.writable) {
      driver.storage.punch(mapping.offset, mapping.length, 'data-write');
      state.markDataDirty();
      return mapping.length;
    }
    const part = Math.min(mapping.length, ZEROES.length);
    return this.remap(guest, part, ZEROES, 0);
  }

  private hasBelow(guest: number): boolean {
    return this.below !== undefined && guest < this.below.size();
  }

  /** The bit for "not cleanly closed" is on disk, for formats that have one, when this returns. */
  private setDirtyBit(): void {
    const { state, driver } = this;
    if (!driver.usesDirtyBit || state.needCheck === NEED_CHECK_SET) return;
    state.metaMutex.with(() => {
      if (state.needCheck === NEED_CHECK_SET) return;
      driver.writeHeader({ dirty: true, virtualSize: state.virtualSize });
      sync(driver, 'flush-header');
      state.lastAllocation = Date.now();
      state.needCheck = NEED_CHECK_SET;
    });
  }

  /** Turns the bit off if nothing depends on it: everything flushed, nothing reserved. */
  private clearDirtyBit(): void {
    const { state, driver } = this;
    state.metaMutex.with(() => {
      const clean = this.locked(() => {
        if (state.failed || state.dirtySlots > 0 || state.dataDirty || state.reserved > 0) return false;
        // Off in memory first: a writer that reserves from now on waits for the mutex and sets it again.
        state.needCheck = NEED_CHECK_CLEAR;
        return true;
      });
      if (!clean) return;
      driver.writeHeader({ dirty: false, virtualSize: state.virtualSize });
      sync(driver, 'flush-header');
    });
  }

  /** More than half of the cache is dirty: writes it back. The write that came here has succeeded; a failure is the next flush's to tell. */
  private relieve(): void {
    if (!this.cache.halfDirty) return;
    try {
      this.flush();
    } catch (error) {
      log('early flush failed: %s', error);
    }
  }

  private locked<T>(body: () => T): T {
    this.state.lock.lockExclusive();
    try {
      return body();
    } finally {
      this.state.lock.unlockExclusive();
    }
  }
}
