/**
 * Requests in flight on one image: one record for each thread (QEMU's tracked requests). The records are the one
 * mechanism for whatever must wait for I/O in flight.
 *
 *   word 0  kind: 0 none, 1 request, 2 remapping request (allocating write, discard, write zeroes)
 *   word 1  generation of the mapping when the request began
 *   word 2  sequence number of a remapping request: arrival order
 *   word 3  turns: changes when a remapping request ends
 *   word 4  threads that wait for this one's turn
 *   floats  start, end of the clusters being remapped
 *
 * Two remapping requests whose clusters overlap go one after the other, in arrival order: this is the allocating-write
 * queue. Reads and in-place writes never wait here. Sequence number and range are published under one mutex, so of two
 * requests the later one always sees the earlier.
 *
 * The generation answers "may somebody still use a place that was dropped?": a request that began before the drop may
 * hold the old mapping. A request publishes its record first and looks at the mapping second.
 *
 * A drain holds new requests back and waits for those in flight: whoever drains sets a word first and looks at the records
 * second, a request publishes its record first and looks at the word second, so one of the two sees the other.
 */
import { sleepOn } from '../system/long-wait';
import { Mutex } from './mutex';

const RECORD_BYTES = 64;
const RECORD_WORDS = RECORD_BYTES / 4;
const RECORD_FLOATS = RECORD_BYTES / 8;

const KIND = 0;
const GENERATION = 1;
const SEQUENCE = 2;
const TURNS = 3;
const WAITERS = 4;
const START = 4;
const END = 5;

/** In front of the records: word 0 mutex, 1 generation, 2 last sequence number, and these. */
const GENERATION_NOW = 1;
const DRAIN = 3;
/** Requests that ended during a drain. */
const ENDED = 4;
/** Remapping requests in flight. */
const REMAPS = 5;

const NONE = 0;
const REQUEST = 1;
const REMAP = 2;

/** Bytes for the records of `threads` threads, and the words in front of them. */
export function recordsBytes(threads: number): number {
  return RECORD_BYTES + threads * RECORD_BYTES;
}

export class Records {
  private readonly words: Int32Array;
  private readonly floats: Float64Array;
  private readonly mutex: Mutex;
  private readonly own: number;

  /** @param thread index of this thread's record; < threads */
  constructor(
    buffer: SharedArrayBuffer,
    byteOffset: number,
    private readonly threads: number,
    thread: number,
  ) {
    if (thread < 0 || thread >= threads) throw new RangeError(`thread ${thread} is not in [0, ${threads})`);
    this.words = new Int32Array(buffer, byteOffset, recordsBytes(threads) / 4);
    this.floats = new Float64Array(buffer, byteOffset, recordsBytes(threads) / 8);
    this.mutex = new Mutex(this.words, 0);
    this.own = thread + 1;
  }

  /** A request of this thread begins; waits while there is a drain. Nested calls are not allowed. */
  begin(): void {
    const { words } = this;
    const base = this.own * RECORD_WORDS;
    for (;;) {
      Atomics.store(words, base + GENERATION, Atomics.load(words, GENERATION_NOW));
      Atomics.store(words, base + KIND, REQUEST);
      if (Atomics.load(words, DRAIN) === 0) return;
      this.end();
      sleepOn(words, DRAIN, 1);
    }
  }

  /** In which this thread's request, or its last one, began. */
  get generation(): number {
    return Atomics.load(this.words, this.own * RECORD_WORDS + GENERATION);
  }

  end(): void {
    const { words } = this;
    Atomics.store(words, this.own * RECORD_WORDS + KIND, NONE);
    if (Atomics.load(words, DRAIN) === 0) return;
    Atomics.add(words, ENDED, 1);
    Atomics.notify(words, ENDED);
  }

  /**
   * Runs `body` with no request of any thread in flight: those that began before have ended, new ones wait. This thread has
   * none either, and `body` begins none. One drain at a time, which the caller sees to.
   */
  drained<T>(body: () => T): T {
    const { words } = this;
    Atomics.store(words, DRAIN, 1);
    try {
      for (;;) {
        const ended = Atomics.load(words, ENDED);
        if (this.inFlight() === 0) break;
        sleepOn(words, ENDED, ended);
      }
      return body();
    } finally {
      Atomics.store(words, DRAIN, 0);
      Atomics.notify(words, DRAIN);
    }
  }

  /**
   * This thread's request is about to remap `[start, end)` (whole clusters). Returns when every overlapping remapping
   * request that came earlier has ended; later ones wait until `endRemap`.
   */
  startRemap(start: number, end: number): void {
    const base = this.own * RECORD_WORDS;
    let sequence: number;
    let others: number;
    this.mutex.lock();
    try {
      sequence = Atomics.add(this.words, 2, 1);
      this.floats[this.own * RECORD_FLOATS + START] = start;
      this.floats[this.own * RECORD_FLOATS + END] = end;
      Atomics.store(this.words, base + SEQUENCE, sequence);
      Atomics.store(this.words, base + KIND, REMAP);
      others = Atomics.add(this.words, REMAPS, 1);
    } finally {
      this.mutex.unlock();
    }
    if (others === 0) return;
    for (let other = 1; other <= this.threads; other++) {
      if (other !== this.own) this.waitFor(other, sequence, start, end);
    }
  }

  endRemap(): void {
    const base = this.own * RECORD_WORDS;
    Atomics.store(this.words, base + KIND, REQUEST);
    // Comes second: whoever finds nobody in flight need not look at the records.
    Atomics.sub(this.words, REMAPS, 1);
    Atomics.add(this.words, base + TURNS, 1);
    if (Atomics.load(this.words, base + WAITERS) > 0) Atomics.notify(this.words, base + TURNS);
  }

  /**
   * A new generation of the mapping begins: call it with the image's lock held exclusively, after the drop.
   * @returns the number to ask `allEndedBefore` with
   */
  nextGeneration(): number {
    return Atomics.add(this.words, GENERATION_NOW, 1) + 1;
  }

  /** True when no request of another thread is in flight that began before `generation`. */
  allEndedBefore(generation: number): boolean {
    for (let other = 1; other <= this.threads; other++) {
      if (other === this.own) continue;
      const base = other * RECORD_WORDS;
      if (Atomics.load(this.words, base + KIND) === NONE) continue;
      // Wrapping difference: generations may pass 2^31.
      if (((Atomics.load(this.words, base + GENERATION) - generation) | 0) < 0) return false;
    }
    return true;
  }

  /** Requests of all threads now, this one's included. */
  inFlight(): number {
    let count = 0;
    for (let slot = 1; slot <= this.threads; slot++) {
      if (Atomics.load(this.words, slot * RECORD_WORDS + KIND) !== NONE) count++;
    }
    return count;
  }

  private waitFor(other: number, sequence: number, start: number, end: number): void {
    const base = other * RECORD_WORDS;
    for (;;) {
      const turns = Atomics.load(this.words, base + TURNS);
      if (!this.mustWait(other, sequence, start, end)) return;
      Atomics.add(this.words, base + WAITERS, 1);
      if (this.mustWait(other, sequence, start, end)) sleepOn(this.words, base + TURNS, turns);
      Atomics.sub(this.words, base + WAITERS, 1);
    }
  }

  private mustWait(other: number, sequence: number, start: number, end: number): boolean {
    const base = other * RECORD_WORDS;
    if (Atomics.load(this.words, base + KIND) !== REMAP) return false;
    if (((Atomics.load(this.words, base + SEQUENCE) - sequence) | 0) > 0) return false;
    const at = other * RECORD_FLOATS;
    return this.floats[at + START] < end && start < this.floats[at + END];
  }
}
