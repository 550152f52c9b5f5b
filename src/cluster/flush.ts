/**
 * What a flush does, and in which order (DESIGN section 5):
 *
 *   1. under the image's lock: copies of the dirty table sectors, the list of dropped places. This is the flush's epoch.
 *   2. reference counts are written; fdatasync; then, when a block of counts was added, the table that names it; fdatasync:
 *      the data of every entry in those copies is safe, it is counted, and new tables are safe, empty. A crash before 3 leaks the new clusters and nothing more. Counts that went down did so in
 *      step 4 of an earlier flush, so writing them now names nothing free that a table on disk still uses.
 *   3. the copies are written, L2 before L1; fdatasync. A crash in between leaves any subset of the entries: each is
 *      right by itself, because its data is safe (2) and what it named before is not reused yet (4).
 *   4. only now the dropped places are free of the tables on disk. They are punched and handed out again once every request
 *      that may still hold the old mapping has ended; until then they wait in the retired queue.
 *
 * One flush of an image runs at a time (FlushGate). A failed fdatasync is final: Linux reports lost pages once and then
 * calls the rest good. A failed write of a table is not: the sectors stay dirty and the next flush writes them again.
 */
import { BlockError } from '../errors';
import type { FormatDriver } from '../formats/driver';
import { logOf } from '../log';
import type { ImageState } from '../shared/image-state';
import type { DirtySpan, TableCache, TableLevel } from '../shared/table-cache';
import type { Storage, StorageEvent } from '../storage/storage';

const log = logOf('cluster');

const EVENT: Record<TableLevel, StorageEvent> = {
  refcount: 'refcount-update',
  'refcount-table': 'refcount-update',
  l2: 'l2-update',
  l1: 'l1-update',
};

/** What one flush is about: everything that had changed when it began. */
interface Epoch {
  /** Of tables. */
  spans: DirtySpan[];
  /** Places that those tables do not name any more. */
  drops: { offset: number; length: number }[];
  /** Guest data, or the file's length, is not synced. */
  dataDirty: boolean;
  /** Requests of earlier generations may still use the dropped places. */
  generation: number;
}

/** The flush itself; the caller holds the flush gate and no lock. */
export function flushImage(driver: FormatDriver, cache: TableCache, imageId: number): void {
  const { state } = driver;
  refuseAfterFailure(driver);
  const epoch = state.lock.withExclusive(() => takeEpoch(state, cache, imageId));
  writeTables(driver, cache, epoch);
  const { drops, generation } = epoch;
  if (drops.length > 0 || state.retired.count > 0) retire(driver, drops, generation);
}

/** Step 1. Lock held exclusively. */
function takeEpoch(state: ImageState, cache: TableCache, imageId: number): Epoch {
  try {
    const spans = state.dirtySlots > 0 ? cache.takeDirty(imageId) : [];
    state.dirtySince = 0;
    const dataDirty = state.takeDataDirty();
    const drops = state.dropped.count > 0 ? state.dropped.takeAll() : [];
    return { spans, drops, dataDirty, generation: drops.length > 0 ? state.records.nextGeneration() : 0 };
  } catch (error) {
    // Out of memory half-way: some sectors may have lost the mark that they are dirty.
    state.markFailed();
    throw error;
  }
}

/** Throws when a sync of this image has failed before: nothing that is written now could be promised. */
export function refuseAfterFailure(driver: FormatDriver): void {
  if (!driver.state.failed) return;
  const { path } = driver.storage;
  throw new BlockError(
    'IO',
    `Cannot flush "${path}": an earlier flush failed and the host may have lost data; unmount, check the image, mount it again`,
    { path },
  );
}

/**
 * fdatasync; a failure is remembered for good. One at a time: Linux tells of lost pages to one caller of a descriptor, and
 * all threads share it. Of two at once, the one that is told nothing must not call its pages safe.
 */
export function sync(driver: FormatDriver, storage: Storage, event: StorageEvent): void {
  driver.state.syncMutex.with(() => {
    refuseAfterFailure(driver);
    try {
      storage.sync(event);
    } catch (error) {
      driver.state.markFailed();
      throw error;
    }
  });
}

function writeTables(driver: FormatDriver, cache: TableCache, epoch: Epoch): void {
  const { storage, data } = driver;
  const { spans, dataDirty } = epoch;
  const of = (wanted: TableLevel) => spans.filter(({ level }) => level === wanted);
  const counts = of('refcount');
  const blocks = of('refcount-table');
  const tables = [...of('l2'), ...of('l1')];
  let done = false;
  try {
    writeSpans(storage, counts);
    if (dataDirty && data !== storage) sync(driver, data, 'flush-data');
    // With a data file too: what marks data dirty may also be a new table or growth of the image file.
    if (counts.length > 0 || dataDirty) sync(driver, storage, 'flush-data');
    writeSpans(storage, blocks);
    if (blocks.length > 0) sync(driver, storage, 'flush-data');
    writeSpans(storage, tables);
    if (tables.length > 0) sync(driver, storage, 'flush-l2');
    done = true;
  } finally {
    if (!done || spans.length > 0) settle(driver, cache, epoch, done);
  }
}

function writeSpans(storage: Storage, spans: DirtySpan[]): void {
  for (const span of spans) storage.write(span.offset, span.bytes, 0, span.bytes.length, EVENT[span.level]);
}

function settle(driver: FormatDriver, cache: TableCache, epoch: Epoch, done: boolean): void {
  const { state } = driver;
  const { spans, drops, dataDirty } = epoch;
  state.lock.withExclusive(() => {
    if (done) {
      state.addDirtySlots(-cache.written(spans));
      // What changed again while it was written has no date yet: without one the timed flush would never come.
      if (state.dirtySlots > 0 && state.dirtySince === 0) state.dirtySince = Date.now();
      return;
    }
    // Nobody knows which sectors reached the file: all of them stay dirty, and the dropped places stay named on disk.
    cache.notWritten(spans);
    if (dataDirty) state.markDataDirty();
    for (const { offset, length } of drops) {
      if (!state.dropped.add(offset, length, 0)) state.forgotten += length;
    }
    if (state.dirtySince === 0) state.dirtySince = Date.now();
  });
}

/** Step 4: frees what no request can hold any more, queues the rest. */
function retire(driver: FormatDriver, drops: Epoch['drops'], generation: number): void {
  const { state } = driver;
  const waiting = state.lock.withExclusive(() => state.retired.takeAll());
  for (const { offset, length } of drops) waiting.push({ offset, length, number: generation });
  for (const { offset, length, number } of waiting) {
    if (state.records.allEndedBefore(number)) {
      try {
        driver.giveBack(offset, length);
        continue;
      } catch (error) {
        // The space is not given back now; the next flush tries again. No data depends on it.
        log('%s: cannot free %d bytes at %d: %s', driver.storage.path, length, offset, error);
      }
    }
    state.lock.withExclusive(() => {
      if (!state.retired.add(offset, length, number)) state.forgotten += length;
      // A date, so that another flush comes even if nobody changes anything any more.
      if (state.dirtySince === 0) state.dirtySince = Date.now();
    });
  }
}
