/**
 * Which snapshot an inode number means, for all threads of a mount: a table in shared memory, one an image. A slot gives a snapshot of the
 * image (by its id) a *serial number*, which no other snapshot gets in the life of the mount, even if the image gives its id
 * out again; and it counts who has the snapshot's files open.
 *
 * Two mutexes: `operations` is held while the image's list changes (take, delete, rename, revert), which does I/O and may take a
 * second; `table` while the slots are read or changed, which does none but for a list that has changed. Order: operations, then table, then
 * whatever the block layer locks.
 */
import { createHash } from 'node:crypto';
import { Mutex } from '../shared/mutex';
import { sleepOn } from '../system/long-wait';

/** Snapshots of one image (our limit, and that of the formats). The memory is taken from the host as it is used. */
export const SLOTS_MAX = 65_536;

/** Float 0: when the list last changed, milliseconds since the epoch. Words from `WORDS_AT` on. */
const CHANGED_MS = 0;
const WORDS_AT = 8;
const OPERATIONS = 0;
const TABLE = 1;
const VERSION = 2;
/** Slots that were ever used: no need to look further. */
const USED = 3;
/** Handles on the live disk. */
const LIVE_OPENS = 4;
const HEADER_WORDS = 6;

/** Words of a slot. Serial 0: the slot is free. */
const SERIAL = 0;
const PINS = 1;
/** 1: the name was taken when the snapshot came: it is shown with its id behind it, and stays so when the other one goes. */
const SUFFIXED = 2;
/** 1: deleted while somebody has it open: no name any more, gone with the last handle. */
const DOOMED = 3;
const KEY = 4;
const KEY_WORDS = 8;
const SLOT_WORDS = KEY + KEY_WORDS;
const KEY_BYTES = KEY_WORDS * 4;

export interface Slot {
  index: number;
  serial: number;
  suffixed: boolean;
  doomed: boolean;
  /** Just made: nobody knows its name yet. */
  fresh: boolean;
}

export class SnapshotSlots {
  readonly operations: Mutex;
  readonly table: Mutex;
  /** One element, `changedMs`: the clock of the folder. */
  readonly times: Float64Array;
  private readonly words: Int32Array;
  private readonly keys: Uint8Array;

  /** @param lastSerial one word for all images of the mount */
  constructor(
    buffer: SharedArrayBuffer,
    private readonly lastSerial: Int32Array,
  ) {
    this.times = new Float64Array(buffer, CHANGED_MS, 1);
    this.words = new Int32Array(buffer, WORDS_AT);
    this.keys = new Uint8Array(buffer, WORDS_AT);
    this.operations = new Mutex(this.words, OPERATIONS);
    this.table = new Mutex(this.words, TABLE);
  }

  /** @param nowMs what the folder shows as the time of its last change */
  static create(nowMs: number): SharedArrayBuffer {
    const buffer = new SharedArrayBuffer(WORDS_AT + (HEADER_WORDS + SLOTS_MAX * SLOT_WORDS) * 4);
    new Float64Array(buffer, CHANGED_MS, 1)[0] = nowMs;
    return buffer;
  }

  /** Moves with every change of the slots. */
  get version(): number {
    return Atomics.load(this.words, VERSION);
  }

  /** How many have the live disk open, as an array of one element. */
  get liveOpens(): Int32Array {
    return this.words.subarray(LIVE_OPENS, LIVE_OPENS + 1);
  }

  /** Waits until nobody has the live disk open, `ms` at the most. @returns whether nobody has */
  waitForClose(ms: number): boolean {
    const deadline = Date.now() + ms;
    for (;;) {
      const opens = Atomics.load(this.words, LIVE_OPENS);
      const left = deadline - Date.now();
      if (opens === 0 || left <= 0) return opens === 0;
      sleepOn(this.words, LIVE_OPENS, opens, left);
    }
  }

  /**
   * Brings the slots in line with the image's list: snapshots that are new get one, those that are gone lose theirs. Table mutex held.
   * @returns the slots in the order of the ids; undefined where an id appears a second time or no slot is left
   */
  reconcile(ids: readonly string[]): (Slot | undefined)[] {
    const known = this.load();
    const seen = new Set<string>();
    let free = 0;
    const slots = ids.map((id) => {
      const key = keyOf(id);
      const name = key.toString('latin1');
      if (seen.has(name)) return undefined;
      seen.add(name);
      const slot = known.get(name);
      if (slot !== undefined) return slot;
      while (free < SLOTS_MAX && this.words[at(free) + SERIAL] !== 0) free++;
      return free === SLOTS_MAX ? undefined : this.occupy(free, key);
    });
    for (const [name, slot] of known) {
      if (!seen.has(name)) this.free(slot.index);
    }
    return slots;
  }

  markSuffixed(slot: Slot, suffixed: boolean): void {
    if (slot.suffixed === suffixed) return;
    slot.suffixed = suffixed;
    this.words[at(slot.index) + SUFFIXED] = suffixed ? 1 : 0;
    this.touch();
  }

  /** Takes the name away. Table mutex held. */
  doom(slot: Slot): void {
    slot.doomed = true;
    this.words[at(slot.index) + DOOMED] = 1;
    this.touched();
  }

  /** The folder has changed, for those who look at its time. Table mutex held. */
  touched(): void {
    this.touch();
    this.times[0] = Date.now();
  }

  /** Undoes `doom`: the image could not delete it. Table mutex held. */
  pardon(slot: Slot): void {
    slot.doomed = false;
    this.words[at(slot.index) + DOOMED] = 0;
    this.touch();
  }

  /** Counts one more handle. Table mutex held. @returns false when the snapshot has been deleted */
  pin(slot: Slot): boolean {
    const word = at(slot.index);
    if (this.words[word + SERIAL] !== slot.serial || this.isDoomed(slot)) return false;
    this.words[word + PINS]++;
    return true;
  }

  /** Counts one handle less. Table mutex held. @returns true when it was the last handle of a deleted snapshot */
  unpin(slot: Slot): boolean {
    const word = at(slot.index);
    if (this.words[word + SERIAL] !== slot.serial || this.words[word + PINS] === 0) return false;
    this.words[word + PINS]--;
    return this.words[word + PINS] === 0 && this.isDoomed(slot);
  }

  isPinned(slot: Slot): boolean {
    const word = at(slot.index);
    return this.words[word + SERIAL] === slot.serial && this.words[word + PINS] > 0;
  }

  private isDoomed(slot: Slot): boolean {
    return this.words[at(slot.index) + DOOMED] !== 0;
  }

  private load(): Map<string, Slot> {
    const found = new Map<string, Slot>();
    for (let index = 0; index < this.words[USED]; index++) {
      const word = at(index);
      const serial = this.words[word + SERIAL];
      if (serial === 0) continue;
      const key = Buffer.from(this.keys.slice((word + KEY) * 4, (word + KEY) * 4 + KEY_BYTES)).toString('latin1');
      const suffixed = this.words[word + SUFFIXED] !== 0;
      const doomed = this.words[word + DOOMED] !== 0;
      found.set(key, { index, serial, suffixed, doomed, fresh: false });
    }
    return found;
  }

  private occupy(index: number, key: Uint8Array): Slot {
    const word = at(index);
    const serial = Atomics.add(this.lastSerial, 0, 1) + 1;
    this.words.fill(0, word, word + SLOT_WORDS);
    this.keys.set(key, (word + KEY) * 4);
    this.words[word + SERIAL] = serial;
    if (this.words[USED] <= index) this.words[USED] = index + 1;
    this.touch();
    return { index, serial, suffixed: false, doomed: false, fresh: true };
  }

  private free(index: number): void {
    this.words[at(index) + SERIAL] = 0;
    this.touch();
  }

  private touch(): void {
    Atomics.add(this.words, VERSION, 1);
  }
}

function at(index: number): number {
  return HEADER_WORDS + index * SLOT_WORDS;
}

/** An id in 32 bytes: its length and itself, or a hash of it where it is longer (ids are short numbers, but need not be). */
function keyOf(id: string): Buffer {
  const key = Buffer.alloc(KEY_BYTES);
  const bytes = Buffer.from(id);
  if (bytes.length < KEY_BYTES) {
    key[0] = bytes.length;
    key.set(bytes, 1);
  } else {
    key[0] = 255;
    key.set(
      createHash('sha256')
        .update(bytes)
        .digest()
        .subarray(0, KEY_BYTES - 1),
      1,
    );
  }
  return key;
}
