/**
 * Everything about one opened image that changes, in shared memory: each thread builds its own `ImageState` over the same
 * buffer. What never changes while the image is open is in its header, as plain data.
 *
 * Lock order: resize mutex → flush gate → meta mutex → grow mutex → sync mutex → image lock → cache mutex. Host I/O may happen
 * under the first five, never under the last two.
 */
import { FLUSH_GATE_WORDS, FlushGate } from './flush-gate';
import { Mutex } from './mutex';
import { PlaceList, RunQueue } from './place-list';
import { Records, recordsBytes } from './records';
import { RW_LOCK_WORDS, RwLock } from './rw-lock';

const LOCK = 0;
/** The lock has a cache line of its own: every request touches it. */
const GROW_MUTEX = LOCK + Math.max(16, RW_LOCK_WORDS);
const META_MUTEX = GROW_MUTEX + 1;
const FLUSH_GATE = META_MUTEX + 1;
const FLAGS = FLUSH_GATE + FLUSH_GATE_WORDS;
const DATA_DIRTY = FLAGS;
const FAILED = FLAGS + 1;
const NEED_CHECK = FLAGS + 2;
const CORRUPT = FLAGS + 3;
const FREE_COUNT = FLAGS + 4;
const DROPPED_COUNT = FLAGS + 5;
const RETIRED_COUNT = FLAGS + 6;
const DIRTY_SLOTS = FLAGS + 7;
const RESIZE_MUTEX = FLAGS + 8;
const CHANGING = FLAGS + 9;
const SYNC_MUTEX = FLAGS + 10;
const SNAPSHOT_GENERATION = FLAGS + 11;

const VIRTUAL_SIZE = 0;
const FILE_END = 1;
const HOST_SIZE = 2;
const DIRTY_SINCE = 3;
const LAST_ALLOCATION = 4;
const FORGOTTEN = 5;
const FLUSHES_AT_GROWTH = 6;

/** First of the format's own numbers, and how many there are. */
const FORMAT_NUMBERS = 16;
const FORMAT_NUMBERS_COUNT = 16;

const WORDS_BYTES = 256;
const FLOATS_BYTES = 256;

/** Runs in the list of free places and in the queues of dropped ones: 64 KiB, 96 KiB and 96 KiB a writable image. */
const FREE_RUNS_MAX = 4096;
const DROPPED_RUNS_MAX = 4096;
const PLACES_BYTES = FREE_RUNS_MAX * 16 + 2 * DROPPED_RUNS_MAX * 24;

/** State of the need-check bit on disk. */
export const NEED_CHECK_CLEAR = 0;
export const NEED_CHECK_SET = 1;
/** The header is being written, or could not be: it must be written before anything depends on the bit. */
export const NEED_CHECK_UNKNOWN = 2;

/** What each thread counts for itself; `statistics` adds the lanes up. */
export const COUNTERS = [
  'readBytes',
  'readOperations',
  'writeBytes',
  'writeOperations',
  'flushOperations',
  'unmapBytes',
  'unmapOperations',
  'failedReadOperations',
  'failedWriteOperations',
  'failedFlushOperations',
  'writeHighestOffset',
] as const;
export type Counter = (typeof COUNTERS)[number];
/** Floats a lane: 128 bytes, so that no two threads write to one cache line. */
const LANE_FLOATS = 16;

export interface ImageStateDescriptor {
  buffer: SharedArrayBuffer;
  threads: number;
  writable: boolean;
}

export function createImageState(threads: number, writable: boolean): ImageStateDescriptor {
  const bytes =
    WORDS_BYTES + FLOATS_BYTES + recordsBytes(threads) + threads * LANE_FLOATS * 8 + (writable ? PLACES_BYTES : 0);
  return { buffer: new SharedArrayBuffer(bytes), threads, writable };
}

export class ImageState {
  /** The mapping in memory: look up under its shared side, change under its exclusive side, do no I/O under it. */
  readonly lock: RwLock;
  /** Held while the host file grows: lengths only go up while an image is open, so nobody's write is cut off. */
  readonly growMutex: Mutex;
  /** Held while the header or the list of tables changes on disk. */
  readonly metaMutex: Mutex;
  readonly flushGate: FlushGate;
  /** Held during an fdatasync: one at a time (cluster/flush.ts). */
  readonly syncMutex: Mutex;
  /** Held while the virtual size grows, and while the list of snapshots changes. */
  readonly resizeMutex: Mutex;
  readonly records: Records;
  /** Free places: read zero, nobody uses them. Lock held exclusively. */
  readonly free: PlaceList;
  /** Places dropped since the last flush; they may still be in the tables on disk. Lock held exclusively. */
  readonly dropped: RunQueue;
  /** Places whose release is durable, waiting for requests that began before it (number: generation). Lock held exclusively. */
  readonly retired: RunQueue;
  readonly words: Int32Array;
  /** What the format keeps for itself, e.g. places of tables that move; all 0 at first. */
  readonly numbers: Float64Array;
  private readonly floats: Float64Array;
  private readonly lanes: Float64Array;
  private readonly lane: number;

  constructor(
    readonly descriptor: ImageStateDescriptor,
    readonly thread: number,
  ) {
    const { buffer, threads, writable } = descriptor;
    this.words = new Int32Array(buffer, 0, WORDS_BYTES / 4);
    this.floats = new Float64Array(buffer, WORDS_BYTES, FLOATS_BYTES / 8);
    this.numbers = this.floats.subarray(FORMAT_NUMBERS, FORMAT_NUMBERS + FORMAT_NUMBERS_COUNT);
    this.lock = new RwLock(this.words, LOCK);
    this.growMutex = new Mutex(this.words, GROW_MUTEX);
    this.metaMutex = new Mutex(this.words, META_MUTEX);
    this.syncMutex = new Mutex(this.words, SYNC_MUTEX);
    this.resizeMutex = new Mutex(this.words, RESIZE_MUTEX);
    this.flushGate = new FlushGate(this.words, FLUSH_GATE);
    let at = WORDS_BYTES + FLOATS_BYTES;
    this.records = new Records(buffer, at, threads, thread);
    at += recordsBytes(threads);
    this.lanes = new Float64Array(buffer, at, threads * LANE_FLOATS);
    this.lane = thread * LANE_FLOATS;
    at += threads * LANE_FLOATS * 8;
    const runs = (count: number) => {
      const view = new Float64Array(buffer, writable ? at : 0, writable ? count : 0);
      at += writable ? count * 8 : 0;
      return view;
    };
    this.free = new PlaceList(this.words, FREE_COUNT, runs(FREE_RUNS_MAX * 2));
    this.dropped = new RunQueue(this.words, DROPPED_COUNT, runs(DROPPED_RUNS_MAX * 3));
    this.retired = new RunQueue(this.words, RETIRED_COUNT, runs(DROPPED_RUNS_MAX * 3));
  }

  /** Bytes the guest sees. Changed under the exclusive lock. */
  get virtualSize(): number {
    return this.floats[VIRTUAL_SIZE];
  }
  set virtualSize(size: number) {
    this.floats[VIRTUAL_SIZE] = size;
  }

  /** End of the last cluster ever given out: where the next one is appended. Changed under the exclusive lock. */
  get fileEnd(): number {
    return this.floats[FILE_END];
  }
  set fileEnd(end: number) {
    this.floats[FILE_END] = end;
  }

  /** Length of the host file as far as we made it grow. Changed under the grow mutex. */
  get hostSize(): number {
    return this.floats[HOST_SIZE];
  }
  set hostSize(size: number) {
    this.floats[HOST_SIZE] = size;
  }

  /** Flushes begun when the host file grew last. Changed under the grow mutex. */
  get flushesAtGrowth(): number {
    return this.floats[FLUSHES_AT_GROWTH];
  }
  set flushesAtGrowth(count: number) {
    this.floats[FLUSHES_AT_GROWTH] = count;
  }

  /** When the oldest unflushed change was made, milliseconds since the epoch; 0 when all is flushed. */
  get dirtySince(): number {
    return this.floats[DIRTY_SINCE];
  }
  set dirtySince(ms: number) {
    this.floats[DIRTY_SINCE] = ms;
  }

  /** When the last allocating write was published, milliseconds since the epoch. */
  get lastAllocation(): number {
    return this.floats[LAST_ALLOCATION];
  }
  set lastAllocation(ms: number) {
    this.floats[LAST_ALLOCATION] = ms;
  }

  /** Bytes that found no room in the lists of free places: they leak until the next check. Lock held exclusively. */
  get forgotten(): number {
    return this.floats[FORGOTTEN];
  }
  set forgotten(bytes: number) {
    this.floats[FORGOTTEN] = bytes;
  }

  /** Something was written to the host file that no sync covers yet. */
  markDataDirty(): void {
    if (Atomics.load(this.words, DATA_DIRTY) === 1) return;
    Atomics.store(this.words, DATA_DIRTY, 1);
    if (this.dirtySince === 0) this.dirtySince = Date.now();
  }

  get dataDirty(): boolean {
    return Atomics.load(this.words, DATA_DIRTY) === 1;
  }

  /** Call before the sync: what is written after this needs the next one. @returns whether there was something */
  takeDataDirty(): boolean {
    return Atomics.exchange(this.words, DATA_DIRTY, 0) === 1;
  }

  /** A sync of this image failed: Linux reports lost pages once, so nothing can be promised until it is reopened. */
  get failed(): boolean {
    return Atomics.load(this.words, FAILED) !== 0;
  }
  markFailed(): void {
    Atomics.store(this.words, FAILED, 1);
  }

  /** The tables were found to be wrong: reads go on, nothing is changed any more. */
  get corrupt(): boolean {
    return Atomics.load(this.words, CORRUPT) !== 0;
  }
  markCorrupt(): void {
    Atomics.store(this.words, CORRUPT, 1);
  }

  /** Moves with every change of the list of internal snapshots: whoever has read the list reads it again then. */
  get snapshotGeneration(): number {
    return Atomics.load(this.words, SNAPSHOT_GENERATION);
  }
  /** With the image's lock held exclusively, together with the place of the list. */
  nextSnapshotGeneration(): void {
    Atomics.add(this.words, SNAPSHOT_GENERATION, 1);
  }

  get needCheck(): number {
    return Atomics.load(this.words, NEED_CHECK);
  }
  set needCheck(value: number) {
    Atomics.store(this.words, NEED_CHECK, value);
  }

  /** Requests that are about to change tables, or do: the need-check bit stays on while there is one. */
  get changing(): number {
    return Atomics.load(this.words, CHANGING);
  }
  /** Comes before a look at the bit: whoever turns it off looks here afterwards. */
  beginChange(): void {
    Atomics.add(this.words, CHANGING, 1);
  }
  endChange(): void {
    Atomics.sub(this.words, CHANGING, 1);
  }

  /** Table slices of this image that differ from the file. */
  get dirtySlots(): number {
    return Atomics.load(this.words, DIRTY_SLOTS);
  }
  addDirtySlots(count: number): void {
    Atomics.add(this.words, DIRTY_SLOTS, count);
    if (count > 0 && this.dirtySince === 0) this.dirtySince = Date.now();
  }

  /** Adds to a counter of this thread. */
  count(counter: Counter, amount: number): void {
    this.lanes[this.lane + COUNTERS.indexOf(counter)] += amount;
  }

  countReads(operations: number, bytes: number): void {
    this.lanes[this.lane] += bytes;
    this.lanes[this.lane + 1] += operations;
  }

  countWrite(bytes: number, end: number): void {
    this.lanes[this.lane + 2] += bytes;
    this.lanes[this.lane + 3]++;
    if (end > this.lanes[this.lane + 10]) this.lanes[this.lane + 10] = end;
  }

  /** Sums over all threads (of writeHighestOffset: the maximum). */
  counters(): Record<Counter, number> {
    const sums = Object.fromEntries(COUNTERS.map((name) => [name, 0])) as Record<Counter, number>;
    for (let thread = 0; thread < this.descriptor.threads; thread++) {
      COUNTERS.forEach((name, i) => {
        const value = this.lanes[thread * LANE_FLOATS + i];
        sums[name] = name === 'writeHighestOffset' ? Math.max(sums[name], value) : sums[name] + value;
      });
    }
    return sums;
  }
}
