/**
 * The L2 cache: slices of mapping tables as they lie on disk, in shared memory, one cache for all images of a mount.
 * L1 tables are cached the same way, so no table needs to fit into memory as a whole.
 *
 *   slot:  SLICE_BYTES of table, a state word, a mask of dirty 512-byte sectors, the key (image, host offset), the level
 *
 *   state word = version * 8 + state        free → loading → clean ⇄ dirty
 *
 * The cache is set-associative: a key may lie in any of the WAYS slots of one set, so there is no list to keep in order.
 * Who may do what:
 *   - look up and read: anyone. A slot can be evicted at any moment by a load for another image, so a reader remembers the
 *     state word's version, reads, and asks `unchanged` before it believes what it read.
 *   - change entries: with the image's lock held exclusively, after `claim` (a compare-and-swap against eviction).
 *   - load and evict: under the cache mutex for the choice of the slot; the read from the file happens outside of it, in
 *     state `loading`, and concurrent misses of one slice share it. Dirty slots are never evicted.
 *   - write back: the flush of the image (one at a time): `takeDirty` copies under the image's lock, `written` or
 *     `notWritten` afterwards under the image's lock. In between the slot stays `dirty`, so it cannot be evicted and reread
 *     before the write has reached the file.
 */
import { sleepOn } from '../system/long-wait';
import { BitSet, bitSetBytes } from './bit-set';
import { Mutex } from './mutex';
import { SECTOR, sectorMask, sectorRange } from './sector-mask';

/** A slice has at most 32 sectors, one bit each in the mask of dirty sectors. */
export const SLICE_BYTES = 16 * 1024;
const WAYS = 8;
/** Smallest cache: 16 sets. */
export const TABLE_CACHE_MIN_BYTES = 16 * WAYS * SLICE_BYTES;

/** x86-64 never lets a load pass an earlier load. */
const LOADS_IN_ORDER = process.arch === 'x64';

const FREE = 0;
const LOADING = 1;
const CLEAN = 2;
const DIRTY = 3;

const HEADER_BYTES = 64;
const MUTEX = 0;
const SLOTS = 1;
const CLOCK = 2;
const DIRTY_SLOTS = 3;
const MISSES = 4;
const PRESSURE = 5;

/** What the entries of a table say: where clusters are, where L2 tables are, how often clusters are referenced, where those counts are. */
export type TableLevel = 'l1' | 'l2' | 'refcount' | 'refcount-table';
const LEVELS: readonly TableLevel[] = ['l1', 'l2', 'refcount', 'refcount-table'];

/** Part of a table that a slot holds. */
export interface TableSlice {
  /** Host offset of the slice; a multiple of 8: entries are never torn where sectors are written whole. */
  offset: number;
  length: number;
  level: TableLevel;
}

/** What a flush writes: the changed sectors of one slot as they were when it began. */
export interface DirtySpan {
  slot: number;
  mask: number;
  level: TableLevel;
  offset: number;
  bytes: Uint8Array;
}

/** @param bytes bound of the memory for tables; at least TABLE_CACHE_MIN_BYTES are used */
export function createTableCache(bytes: number): SharedArrayBuffer {
  const sets = Math.max(16, Math.floor(bytes / (WAYS * SLICE_BYTES)));
  const slots = sets * WAYS;
  const buffer = new SharedArrayBuffer(HEADER_BYTES + slots * (32 + SLICE_BYTES) + bitSetBytes(slots));
  new Int32Array(buffer)[SLOTS] = slots;
  return buffer;
}

export class TableCache {
  /** Entries of all slots: `slot * SLICE_BYTES / 4` is the first word of a slot. Little-endian on every host we run on. */
  readonly words32: Uint32Array;
  readonly bytes: Uint8Array;
  private readonly header: Int32Array;
  private readonly mutex: Mutex;
  private readonly state: Int32Array;
  private readonly mask: Int32Array;
  private readonly image: Int32Array;
  private readonly level: Int32Array;
  private readonly length: Int32Array;
  private readonly used: Int32Array;
  private readonly key: Float64Array;
  // A slot leaves it before it is clean: after that another image may claim it, and would lose its entry.
  private readonly dirty: BitSet;
  private readonly slots: number;
  private readonly sets: number;

  constructor(readonly buffer: SharedArrayBuffer) {
    this.header = new Int32Array(buffer, 0, HEADER_BYTES / 4);
    this.mutex = new Mutex(this.header, MUTEX);
    const slots = this.header[SLOTS];
    this.slots = slots;
    this.sets = slots / WAYS;
    let at = HEADER_BYTES;
    this.key = new Float64Array(buffer, at, slots);
    at += slots * 8;
    const ints = () => {
      const view = new Int32Array(buffer, at, slots);
      at += slots * 4;
      return view;
    };
    this.state = ints();
    this.mask = ints();
    this.image = ints();
    this.level = ints();
    this.length = ints();
    this.used = ints();
    this.bytes = new Uint8Array(buffer, at, slots * SLICE_BYTES);
    this.words32 = new Uint32Array(buffer, at, (slots * SLICE_BYTES) / 4);
    this.dirty = new BitSet(buffer, at + slots * SLICE_BYTES, slots);
  }

  /**
   * Slot that holds the slice at `offset` of `image`, or -1.
   * @param hint slot where the caller found its last slice: looked at first
   */
  find(image: number, offset: number, hint: number): number {
    if (this.key[hint] === offset && this.image[hint] === image && (Atomics.load(this.state, hint) & 7) >= CLEAN) {
      const clock = this.header[CLOCK];
      if (this.used[hint] !== clock) this.used[hint] = clock;
      return hint;
    }
    const first = this.setOf(image, offset) * WAYS;
    for (let slot = first; slot < first + WAYS; slot++) {
      if (this.key[slot] === offset && this.image[slot] === image && (Atomics.load(this.state, slot) & 7) >= CLEAN) {
        const clock = this.header[CLOCK];
        if (this.used[slot] !== clock) this.used[slot] = clock;
        return slot;
      }
    }
    return -1;
  }

  /** Level of the slice at `offset` of `image`, if it is in the cache. */
  levelOf(image: number, offset: number): TableLevel | undefined {
    const slot = this.find(image, offset, 0);
    return slot < 0 ? undefined : LEVELS[this.level[slot]];
  }

  /** Remember this before reading entries of the slot that `find` gave; then ask `unchanged`. -1: it is being loaded just now. */
  version(slot: number): number {
    const state = Atomics.load(this.state, slot);
    return (state & 7) >= CLEAN ? state >> 3 : -1;
  }

  /** Is the slot still what `find` said, at this version? Then everything read in between belongs to that slice. */
  unchanged(slot: number, version: number, image: number, offset: number): boolean {
    // Elsewhere a load may pass a later one; a read-modify-write keeps the entries' loads before it.
    const state = LOADS_IN_ORDER ? Atomics.load(this.state, slot) : Atomics.or(this.state, slot, 0);
    return state >> 3 === version && (state & 7) >= CLEAN && this.key[slot] === offset && this.image[slot] === image;
  }

  /**
   * Makes the slot safe from eviction and marks `[from, from + length)` of it dirty; entries may be changed after it.
   * The image's lock is held exclusively.
   * @returns 1 when the slot became dirty, 0 when it was already, -1 when it was evicted: load it again
   */
  claim(slot: number, image: number, offset: number, from: number, length: number): number {
    const sectors = sectorMask(from, length);
    for (;;) {
      const state = Atomics.load(this.state, slot);
      const kind = state & 7;
      if (kind < CLEAN || this.key[slot] !== offset || this.image[slot] !== image) return -1;
      // The key is that of the state only if the slot did not change hands in between.
      if (Atomics.load(this.state, slot) !== state) continue;
      if (kind === DIRTY) {
        Atomics.or(this.mask, slot, sectors);
        return 0;
      }
      if (Atomics.compareExchange(this.state, slot, state, state + (DIRTY - CLEAN)) === state) {
        Atomics.or(this.mask, slot, sectors);
        this.dirty.add(slot);
        Atomics.add(this.header, DIRTY_SLOTS, 1);
        return 1;
      }
    }
  }

  /**
   * Brings a slice into the cache; no lock of the image is held. Concurrent loads of one slice share one read.
   * @param read reads the slice from the file
   * @returns false when every slot of its set is dirty: flush, then try again
   */
  load(image: number, slice: TableSlice, read: (target: Uint8Array, at: number, length: number) => void): boolean {
    const first = this.setOf(image, slice.offset) * WAYS;
    let slot = -1;
    for (;;) {
      let busy = -1;
      this.mutex.lock();
      try {
        const present = this.findAny(first, image, slice.offset);
        if (present >= 0) {
          if ((Atomics.load(this.state, present) & 7) >= CLEAN) return true;
          busy = present;
        } else {
          slot = this.evict(first);
          if (slot < 0) {
            Atomics.store(this.header, PRESSURE, 1);
            return false;
          }
          this.key[slot] = slice.offset;
          this.image[slot] = image;
          this.level[slot] = LEVELS.indexOf(slice.level);
          this.length[slot] = slice.length;
          Atomics.add(this.header, MISSES, 1);
          this.used[slot] = Atomics.add(this.header, CLOCK, 1) + 1;
        }
      } finally {
        this.mutex.unlock();
      }
      if (busy < 0) break;
      const state = Atomics.load(this.state, busy);
      if ((state & 7) === LOADING) sleepOn(this.state, busy, state);
    }
    const loading = Atomics.load(this.state, slot);
    let next = FREE;
    try {
      read(this.bytes, slot * SLICE_BYTES, slice.length);
      next = CLEAN;
    } finally {
      if (next === FREE) this.key[slot] = -1;
      Atomics.store(this.state, slot, loading - LOADING + next);
      Atomics.notify(this.state, slot);
    }
    return true;
  }

  /** The first dirty slot of `image` from `from` on, or -1. The image's lock is held. */
  private nextDirty(image: number, from: number): number {
    for (let slot = this.dirty.next(from); slot >= 0; slot = this.dirty.next(slot + 1)) {
      const state = Atomics.load(this.state, slot);
      // The image is that of the state only if the slot did not change hands in between.
      if ((state & 7) === DIRTY && this.image[slot] === image && Atomics.load(this.state, slot) === state) return slot;
    }
    return -1;
  }

  /** Does a slice of `image` that overlaps `[from, to)` differ from the file? The image's lock is held. */
  isDirty(image: number, from: number, to: number): boolean {
    for (let slot = this.nextDirty(image, 0); slot >= 0; slot = this.nextDirty(image, slot + 1))
      if (this.key[slot] < to && this.key[slot] + this.length[slot] > from) return true;
    return false;
  }

  /**
   * Forgets the slice at `offset`: the table that was there is no more, and nobody looks it up. Otherwise another table at
   * the same place would read as the old one. The image's lock is held exclusively.
   * @returns true when it differed from the file
   */
  forgetSlice(image: number, offset: number): boolean {
    const first = this.setOf(image, offset) * WAYS;
    for (let slot = first; slot < first + WAYS; slot++) {
      if (this.key[slot] !== offset || this.image[slot] !== image) continue;
      return this.mutex.with(() => {
        const state = Atomics.load(this.state, slot);
        if ((state & 7) < CLEAN || this.key[slot] !== offset || this.image[slot] !== image) return false;
        // An eviction needs the cache mutex, a claim the image's lock: both are ours.
        this.mask[slot] = 0;
        this.key[slot] = -1;
        this.dirty.remove(slot);
        Atomics.store(this.state, slot, nextVersion(state) + FREE);
        if ((state & 7) !== DIRTY) return false;
        Atomics.sub(this.header, DIRTY_SLOTS, 1);
        return true;
      });
    }
    return false;
  }

  /** Copies of everything of `image` that differs from the file. The image's lock is held exclusively; one flush at a time. */
  takeDirty(image: number): DirtySpan[] {
    const spans: DirtySpan[] = [];
    for (let slot = this.nextDirty(image, 0); slot >= 0; slot = this.nextDirty(image, slot + 1)) {
      const mask = Atomics.load(this.mask, slot);
      if (mask === 0) continue;
      const { from, to: end } = sectorRange(mask);
      // A table may end inside a sector: what follows it in the file is not ours to write.
      const to = Math.min(end, this.length[slot]);
      const at = slot * SLICE_BYTES;
      const bytes = this.bytes.slice(at + from, at + to);
      Atomics.store(this.mask, slot, 0);
      spans.push({ slot, mask, level: LEVELS[this.level[slot]], offset: this.key[slot] + from, bytes });
    }
    return spans;
  }

  /** The spans are in the file. The image's lock is held exclusively. @returns how many slots are clean now */
  written(spans: DirtySpan[]): number {
    let cleaned = 0;
    for (const { slot } of spans) {
      if (Atomics.load(this.mask, slot) !== 0) continue;
      this.dirty.remove(slot);
      Atomics.sub(this.state, slot, DIRTY - CLEAN);
      cleaned++;
    }
    Atomics.sub(this.header, DIRTY_SLOTS, cleaned);
    if (cleaned > 0) Atomics.store(this.header, PRESSURE, 0);
    return cleaned;
  }

  /** The spans could not be written: they stay dirty. The image's lock is held exclusively. */
  notWritten(spans: DirtySpan[]): void {
    for (const { slot, mask } of spans) Atomics.or(this.mask, slot, mask);
  }

  /** More than half of the cache is dirty, or somebody found every slot of a set dirty: time for a flush. */
  get halfDirty(): boolean {
    return Atomics.load(this.header, DIRTY_SLOTS) > this.slots / 2 || Atomics.load(this.header, PRESSURE) === 1;
  }

  /** Dirty slots stand in somebody's way: their images are to be flushed. */
  askForSpace(): void {
    Atomics.store(this.header, PRESSURE, 1);
  }

  /** Slices loaded so far, for statistics. */
  get misses(): number {
    return Atomics.load(this.header, MISSES);
  }

  get capacity(): number {
    return this.slots;
  }

  /** Forgets every slice of `image`; nobody uses the image any more. @returns dirty slots that were dropped */
  forget(image: number): number {
    let dropped = 0;
    this.mutex.with(() => {
      for (let slot = 0; slot < this.slots; slot++) {
        const state = Atomics.load(this.state, slot);
        if (this.image[slot] !== image || (state & 7) < CLEAN) continue;
        if ((state & 7) === DIRTY) dropped++;
        this.mask[slot] = 0;
        this.key[slot] = -1;
        this.dirty.remove(slot);
        Atomics.store(this.state, slot, nextVersion(state) + FREE);
      }
    });
    Atomics.sub(this.header, DIRTY_SLOTS, dropped);
    return dropped;
  }

  /**
   * Neighbouring slices lie in neighbouring sets, so that a table fills the cache evenly. Whole rounds of sets are shifted
   * against each other: tables lie powers of two apart, and their first slices would all meet in a few sets. A small integer for V8, too: else slots were doubles.
   */
  private setOf(image: number, offset: number): number {
    const slice = Math.floor(offset / SLICE_BYTES);
    const round = Math.floor(slice / this.sets);
    // Tables smaller than a slice begin at some sector of one. Multiplications keep the low 32 bits.
    const low = Math.imul((round % 2 ** 27) * 32 + (offset % SLICE_BYTES) / SECTOR, 0x9e3779b1);
    const high = Math.imul(Math.floor(round / 2 ** 27) * 1024 + image, 0x85ebca6b);
    const mixed = Math.imul(low ^ high ^ (low >>> 15), 0xc2b2ae35);
    return ((slice + ((mixed ^ (mixed >>> 13)) >>> 0)) % this.sets) | 0;
  }

  /** The slot of this key in any state but free. The cache mutex is held. */
  private findAny(first: number, image: number, offset: number): number {
    for (let slot = first; slot < first + WAYS; slot++) {
      if (this.key[slot] === offset && this.image[slot] === image && (Atomics.load(this.state, slot) & 7) !== FREE)
        return slot;
    }
    return -1;
  }

  /** Chooses a slot of the set and puts it into `loading`: a free one, else the clean one used longest ago. */
  private evict(first: number): number {
    for (;;) {
      let best = -1;
      let bestState = 0;
      for (let slot = first; slot < first + WAYS; slot++) {
        const state = Atomics.load(this.state, slot);
        const kind = state & 7;
        if (kind === FREE) {
          Atomics.store(this.state, slot, nextVersion(state) + LOADING);
          return slot;
        }
        if (kind !== CLEAN) continue;
        if (best < 0 || ((this.used[slot] - this.used[best]) | 0) < 0) {
          best = slot;
          bestState = state;
        }
      }
      if (best < 0) return -1;
      // A writer may claim the slot at this moment: one of the two compare-and-swaps wins.
      if (Atomics.compareExchange(this.state, best, bestState, nextVersion(bestState) + LOADING) === bestState)
        return best;
    }
  }
}

/** State word of the next version, state bits zero; versions wrap within 28 bits. */
const nextVersion = (state: number): number => (((state >> 3) + 1) & 0xfffffff) << 3;
