/** Looking up the mapping, with whatever table it needs brought into the cache first. */
import { BlockError } from '../errors';
import type { FormatDriver, Mapping } from '../formats/driver';
import { logOf } from '../log';
import type { TableCache, TableSlice } from '../shared/table-cache';
import type { LayerStatus } from './layer';

const log = logOf('cluster');

/** Attempts to get a slice while other images keep evicting it or fill its set with dirty ones; about ten seconds. */
const LOAD_ATTEMPTS = 10_000;
/** A request that has asked for this many slices without getting on: they may be evicting each other. */
const THRASHING = 64;
/** Never notified: waiting on it is a pause as long as the time-out, milliseconds. */
const PAUSE = new Int32Array(new SharedArrayBuffer(4));

export class Mapper {
  private readonly readOnly: boolean;

  /** @param flush makes this image's dirty slots clean */
  constructor(
    private readonly driver: FormatDriver,
    private readonly cache: TableCache,
    private readonly imageId: number,
    private readonly flush: () => void,
  ) {
    this.readOnly = driver.storage.readOnly;
  }

  /** The mapping at `guest`. Holds no lock on return. */
  lookUp(guest: number, maxLength: number): LayerStatus {
    return this.lookUpBy((most) => this.driver.map(guest, most), maxLength);
  }

  /** The same without bringing anything into the cache. */
  peek(guest: number, maxLength: number): Mapping {
    return this.mapLocked((most) => this.driver.map(guest, most), maxLength);
  }

  /** The same for a change: throws TableError when what could be written in place is a table. */
  lookUpForChange(guest: number, maxLength: number): LayerStatus {
    const { driver } = this;
    return this.lookUpBy((most) => {
      const mapping = driver.map(guest, most);
      if (mapping.kind === 'data' && mapping.writable) driver.refuseTables?.(mapping.offset, mapping.length);
      return mapping;
    }, maxLength);
  }

  private lookUpBy(map: (maxLength: number) => Mapping, maxLength: number): LayerStatus {
    for (let attempt = 0; attempt < LOAD_ATTEMPTS; attempt++) {
      const mapping = this.mapLocked(map, maxLength);
      if (mapping.kind !== 'miss') return mapping;
      this.load(mapping.slice, attempt);
    }
    throw this.cacheTooSmall();
  }

  /**
   * Brings the slice into the cache. No lock is held.
   * @param attempt how many slices this request has asked for without getting on
   */
  load(slice: TableSlice, attempt = 0): void {
    const { storage } = this.driver;
    if (attempt % THRASHING === THRASHING - 1) this.endThrashing();
    const read = (target: Uint8Array, at: number, length: number) => {
      storage.read(slice.offset, target, at, length);
    };
    for (let attempt = 0; attempt < LOAD_ATTEMPTS; attempt++) {
      if (this.cache.load(this.imageId, slice, read)) return;
      // Every slot it may lie in is dirty. If these are another image's tables, the flusher sees that the cache is under
      // pressure and flushes that image; an error is for its writers, not for whoever reads here.
      this.flushOwn();
      if (attempt > 0) Atomics.wait(PAUSE, 0, 0, 1);
    }
    throw this.cacheTooSmall();
  }

  /** A request needs several slices at once. Where all but one slot of their set are dirty, they evict each other for ever. */
  private endThrashing(): void {
    this.flushOwn();
    this.cache.askForSpace();
    Atomics.wait(PAUSE, 0, 0, 1);
  }

  private flushOwn(): void {
    const { state, storage } = this.driver;
    if (this.readOnly || state.dirtySlots === 0) return;
    try {
      this.flush();
    } catch (error) {
      log('flush of %s for a free slot failed: %s', storage.path, error);
    }
  }

  /** Runs `body` under the exclusive lock. */
  locked<T>(body: () => T): T {
    return this.driver.state.lock.withExclusive(body);
  }

  private mapLocked(map: (maxLength: number) => Mapping, maxLength: number): Mapping {
    // Nobody changes the tables of a read-only layer, so there is nothing to lock; evictions are seen by the driver.
    if (this.readOnly) return map(maxLength);
    const { lock } = this.driver.state;
    lock.lockShared();
    try {
      return map(maxLength);
    } finally {
      lock.unlockShared();
    }
  }

  private cacheTooSmall(): BlockError {
    const { path } = this.driver.storage;
    return new BlockError(
      'LIMIT_EXCEEDED',
      `Cannot load a table of "${path}": the table cache is full; give a larger --cache-size`,
      { path },
    );
  }
}
