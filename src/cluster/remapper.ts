/**
 * The way of an allocating write:
 *
 *   reserve   under the exclusive lock: places for the clusters; nothing reads differently yet
 *   fill      without a lock: what the first and last cluster keep, and the new bytes, written to the places
 *   publish   under the exclusive lock: the tables in memory point to the places
 *
 * A failure in between gives the places back: nothing to undo. Readers see the old mapping until it is published. The
 * request's record keeps other remapping requests off its clusters meanwhile.
 */
import type { FormatDriver, Mapping, Reservation, Target } from '../formats/driver';
import type { TableCache, TableSlice } from '../shared/table-cache';
import { alignDown, alignUp, KIB, MIB } from '../units';
import type { DirtyBit } from './dirty-bit';
import { refuseAfterFailure } from './flush';
import type { Below } from './layer';
import type { Mapper } from './mapper';
import { scratch } from './scratch';

/** Up to this size clusters with kept bytes are put together in memory and written at once; larger ones in pieces. */
const ASSEMBLE_MAX = 256 * KIB;
const PIECE = MIB;
/** Flush before a request could drop more places than the queue still holds: one slice has at most 2,048 entries. */
const DROP_ROOM = 2048;

/** A run that needs a place: from the granule of the request's start on, inside one table slice. */
interface Run {
  /** Where the places begin: the request's granule, or its cluster where that has to be replaced as a whole. */
  start: number;
  /** Bytes from the request's start. */
  length: number;
  first: Mapping['kind'];
  last: Mapping['kind'];
}

export class Remapper {
  /** @param readNow what the guest reads now, in this layer and below; inside the disk */
  constructor(
    private readonly driver: FormatDriver,
    private readonly cache: TableCache,
    private readonly mapper: Mapper,
    private readonly dirtyBit: DirtyBit,
    private readonly below: Below | undefined,
    private readonly flush: () => void,
    private readonly readNow: (guest: number, target: Uint8Array, at: number, length: number) => void,
  ) {}

  /**
   * Gives the clusters at `guest` a place of their own and writes `length` bytes of `source` there (undefined: they only
   * keep what they read as). Handles one run. @returns bytes done, at most `length`; 0: it is writable data by now, look again
   */
  write(guest: number, length: number, source: Uint8Array | undefined, at: number): number {
    const { clusterSize } = this.driver;
    // Whole clusters, also where granules are smaller: two requests must not both allocate one cluster.
    const remapped = { start: alignDown(guest, clusterSize), end: alignUp(guest + length, clusterSize) };
    return this.changing(guest, remapped, () => {
      const { state } = this.driver;
      const found = this.reserveRun(guest, length, source !== undefined);
      if (found === undefined) return 0;
      const { run, reservation } = found;
      const { start } = run;
      const done = Math.min(run.length, start + reservation.length - guest);
      try {
        this.driver.growHostFile(reservation.offset + reservation.length);
        this.fill(reservation, guest, done, source, at, run);
        state.markDataDirty();
      } catch (error) {
        this.mapper.locked(() => this.driver.release(reservation));
        throw error;
      }
      this.publish(start, reservation.length, { kind: 'data', offset: reservation.offset }, reservation);
      return done;
    });
  }

  /**
   * Whole granules, inside one table slice, get a target without data; the last one may be cut by the end of the disk.
   * @returns false when the disk has grown into the last granule: nothing was changed
   */
  point(guest: number, length: number, target: Target): boolean {
    const { clusterSize, granule, state } = this.driver;
    const whole = alignUp(length, granule);
    const remapped = { start: alignDown(guest, clusterSize), end: alignUp(guest + length, clusterSize) };
    const isWhole = () => whole === length || state.virtualSize <= guest + length;
    return this.changing(guest, remapped, () => this.publish(guest, whole, target, undefined, isWhole));
  }

  /** Runs `body` with everything there that a change of tables needs, and the clusters kept from other such requests. */
  changing<T>(guest: number, remapped: { start: number; end: number }, body: () => T): T {
    const { state } = this.driver;
    state.beginChange();
    try {
      this.makeRoom(guest);
      state.records.startRemap(remapped.start, remapped.end);
      try {
        return body();
      } finally {
        state.records.endRemap();
      }
    } finally {
      state.endChange();
    }
  }

  /** Everything that needs I/O before places can be reserved at `guest`. No lock is held. */
  private makeRoom(guest: number): void {
    const { driver } = this;
    refuseAfterFailure(driver);
    const { dropped, dirtySlots } = driver.state;
    // An image that cannot write its tables fails here, before it fills the cache that other images need too.
    const isFull = this.cache.halfDirty && dirtySlots > 0;
    if (isFull || dropped.capacity - dropped.count < DROP_ROOM) this.flush();
    this.dirtyBit.set();
    for (let attempt = 0; ; attempt++) {
      const missing = driver.prepareTables(guest);
      if (missing === undefined) return;
      this.mapper.load(missing, attempt);
    }
  }

  /** Calls `take` under the exclusive lock until it has places. */
  reserve<T extends object | undefined>(guest: number, take: () => T | TableSlice | 'prepare'): T {
    for (let attempt = 0; ; attempt++) {
      const got = this.mapper.locked(take);
      if (got === 'prepare') this.makeRoom(guest);
      else if (got !== undefined && 'level' in got) this.mapper.load(got, attempt);
      else return got;
    }
  }

  /** Finds the run of clusters at `guest` that need a place, and reserves it; undefined when it is writable data already. */
  private reserveRun(
    guest: number,
    length: number,
    mixed: boolean,
  ): { run: Run; reservation: Reservation } | undefined {
    const { driver } = this;
    return this.reserve<{ run: Run; reservation: Reservation } | undefined>(guest, () => {
      const run = this.runAt(guest, length, mixed);
      if (run === undefined || 'offset' in run) return run;
      const unit = driver.writeUnit?.(guest) ?? driver.granule;
      run.start = alignDown(guest, unit);
      // A cluster with subclusters of any kind moves as a whole.
      if (unit !== driver.granule) run.first = run.last = 'data';
      const reservation = driver.reserve(run.start, alignUp(guest + run.length, unit) - run.start);
      if (reservation === 'prepare' || 'level' in reservation) return reservation;
      return { run, reservation };
    });
  }

  /**
   * The run at `guest` that cannot be written in place; undefined when it can; or the slice to load. Lock held.
   * @param mixed may be of several kinds: true when the guest overwrites all but the ends
   */
  private runAt(guest: number, maxLength: number, mixed: boolean): Run | TableSlice | undefined {
    const { driver } = this;
    // With subclusters one cluster at a time: each may have a place already, or none.
    const span = driver.granule === driver.clusterSize ? driver.sliceSpan : driver.clusterSize;
    const length = Math.min(maxLength, span - (guest % span));
    const first = driver.map(guest, length);
    if (first.kind === 'miss') return first.slice;
    if (first.kind === 'data' && first.writable) return undefined;
    const run: Run = { start: guest, length: first.length, first: first.kind, last: first.kind };
    while (mixed && run.length < length) {
      const next = driver.map(guest + run.length, length - run.length);
      if (next.kind === 'miss' || (next.kind === 'data' && next.writable)) break;
      run.length += next.length;
      run.last = next.kind;
    }
    return run;
  }

  /** Writes the reserved places: the guest's bytes, and around them what the first and last granule keep. */
  private fill(
    place: Reservation,
    guest: number,
    length: number,
    source: Uint8Array | undefined,
    at: number,
    run: Run,
  ): void {
    const { data } = this.driver;
    const { start } = run;
    const end = start + place.length;
    const bodyEnd = source === undefined ? guest : guest + length;
    const head = this.keeps(run.first, start, guest, place.fresh);
    const tail = this.keeps(run.last, bodyEnd, end, place.fresh);
    if ((head || tail) && place.length <= ASSEMBLE_MAX) {
      const from = head ? start : guest;
      const to = tail ? end : bodyEnd;
      const bytes = scratch(to - from);
      if (head) this.readKept(start, bytes, 0, guest - start);
      if (source !== undefined) bytes.set(source.subarray(at, at + length), guest - from);
      if (tail) this.readKept(bodyEnd, bytes, bodyEnd - from, end - bodyEnd);
      data.write(place.offset + (from - start), bytes, 0, to - from, 'cow-write');
      return;
    }
    if (head) this.copyKept(start, guest, place.offset);
    if (source !== undefined) data.write(place.offset + (guest - start), source, at, length, 'data-write');
    if (tail) this.copyKept(bodyEnd, end, place.offset + (bodyEnd - start));
    if (source === undefined) data.allocate(place.offset, place.length, 'data-write');
  }

  /** Must `[from, to)` of the place be written? Not if it is empty, or reads zero both before and after. */
  private keeps(kind: Mapping['kind'], from: number, to: number, fresh: boolean): boolean {
    if (from >= to) return false;
    if (!fresh) return true;
    if (kind === 'zero') return false;
    return kind !== 'unallocated' || (this.below !== undefined && from < this.below.size());
  }

  /**
   * What the guest reads at `from` now: from below where nothing is allocated, zeroes where it is a zero cluster (never
   * the backing file: it is hidden), zeroes past the end of the disk.
   */
  private readKept(from: number, target: Uint8Array, at: number, length: number): void {
    const inside = Math.max(0, Math.min(length, this.driver.state.virtualSize - from));
    if (inside > 0) this.readNow(from, target, at, inside);
    target.fill(0, at + inside, at + length);
  }

  private copyKept(from: number, to: number, offset: number): void {
    for (let done = 0; done < to - from; done += PIECE) {
      const length = Math.min(PIECE, to - from - done);
      const bytes = scratch(PIECE);
      this.readKept(from + done, bytes, 0, length);
      this.driver.data.write(offset + done, bytes, 0, length, 'cow-write');
    }
  }

  /**
   * Publishes, loading the table as often as it is evicted under us.
   * @param stillRight asked under the lock, before anything changes
   * @returns false when it was not right any more
   */
  publish(
    start: number,
    length: number,
    target: Target,
    reservation?: Reservation,
    stillRight: () => boolean = () => true,
  ): boolean {
    const { state } = this.driver;
    let published = false;
    try {
      for (let attempt = 0; !published; attempt++) {
        const missing = this.mapper.locked(() => {
          if (!stillRight()) return 'wrong';
          const slice = this.driver.publish(start, length, target);
          if (slice !== undefined) return slice;
          state.lastAllocation = Date.now();
          published = true;
          return undefined;
        });
        if (missing === 'wrong') return false;
        if (missing !== undefined) this.mapper.load(missing, attempt);
      }
      return true;
    } finally {
      if (!published && reservation !== undefined) this.mapper.locked(() => this.driver.release(reservation));
    }
  }
}
