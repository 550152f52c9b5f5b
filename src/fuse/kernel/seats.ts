/**
 * Which workers take requests. A worker needs a seat to take and serve one; the others are parked on a word of memory and cost
 * nothing. /dev/fuse wakes a sleeper for every request, even when another worker is about to read it: on two cores three idle
 * workers in read(2) took a third of the speed of the one that did the work. But a worker that waits for the host's disk must
 * not keep the others from working, and at first, while a mount is cold, one sits alone, so
 *
 *   - whoever is about to wait long (a flush) stands up, and a parked worker sits down when too few are left to serve;
 *   - few sit while they take the requests of a queue together, on two processors one (`read-batch.ts`);
 *   - once reads take long as many sit as there are processors, and if blocks are read, each takes several small reads at a time (`serve.ts`);
 *   - all may sit once workers wait for the disk and have few reads at a time;
 *   - all that ends when the daemon sees nobody waiting for the disk any more (`daemon/governor.ts`).
 *
 * A parked worker holds no lock and serves no request, so whoever waits for a lock waits for a thread that runs.
 */
import { logOf } from '../../log';
import { blocksRead } from '../../system/blocks-read';

const log = logOf('fuse:seats');

/** Every so many small reads of a worker one is timed while the page cache answers. */
const TIMED_READ = 8;
export const SMALL_READ = 64 * 1024;
/** Longer than the page cache ever takes for a small read, shorter than any disk, ms. */
const DISK_MS = 0.1;
/** Longer than an SSD takes as a rule, shorter than the seek of a hard disk, ms. */
const SLOW_DISK_MS = 4;
/** So many timed reads in a row: one alone may only have been interrupted. */
const IN_A_ROW = 2;

/** Words of the shared memory. */
const LIMIT = 0;
const TAKEN = 1;
/** Workers that are parked or about to. */
const PARKED = 2;
/** Wake-ups: parked workers wait for this word to change. */
const WAKEUPS = 3;
/** Workers that wait for a request, polling or asleep. */
const WAITING = 4;
/** 1 while somebody polls. */
const POLLING = 5;
/** Workers that serve small reads while these wait for the disk. */
const READING = 6;
/** Counts requests. */
const REQUESTS = 7;
/** One of `DISK`. */
const WAITED_FOR = 8;
/** Counts the times that a worker took small reads while these wait for the disk, and those reads. */
const TURNS = 9;
const TURN_READS = 10;
/** How many may sit once reads take long. */
const BUSY_LIMIT = 11;
/** Counts requests that were taken together from a queue. */
const TOGETHER = 12;
const WORDS = 13;
// Words that are read without Atomics: whoever reads them decides about speed only, or looks again; an Atomics.load is a call (docs/adr/0012-parked-workers.md).

/** What reads wait for. NONE: the page cache answers. */
export const DISK = { NONE: 0, FAST: 1, SLOW: 2 } as const;

/**
 * @param limit how many may sit at first
 * @param busyLimit how many may sit once reads take long
 */
export function createSeats(limit: number, busyLimit: number): SharedArrayBuffer {
  const memory = new SharedArrayBuffer(WORDS * Int32Array.BYTES_PER_ELEMENT);
  const words = new Int32Array(memory);
  words[LIMIT] = limit;
  words[BUSY_LIMIT] = busyLimit;
  return memory;
}

export class Seats {
  private readonly words: Int32Array;
  private reads = 0;
  /** The next read is the first of those that were taken together. */
  private isFirst = false;
  /** Timed reads in a row that took as long as one that waits for a disk, and for a slow one. */
  private diskReads = 0;
  private slowDiskReads = 0;
  /** After the last timed read that took long. */
  private blocksBefore = 0;

  /**
   * @param memory the same for all workers of a mount
   * @param blocks how much this worker has read from block devices
   * @param now ms
   */
  constructor(
    memory: SharedArrayBuffer,
    private readonly blocks = blocksRead,
    private readonly now = () => performance.now(),
  ) {
    this.words = new Int32Array(memory);
  }

  /** How many may sit now. */
  get limit(): number {
    return this.words[LIMIT];
  }

  /** What reads wait for: one of `DISK`. */
  get disk(): number {
    return this.words[WAITED_FOR];
  }

  /** Nobody who sits waits for a request. */
  get nobodyWaits(): boolean {
    return this.words[WAITING] === 0;
  }

  /** Somebody sits, and none of those waits for a request. */
  get allBusy(): boolean {
    return Atomics.load(this.words, TAKEN) > 0 && this.nobodyWaits;
  }

  /** How many requests have been taken; wraps. */
  get requests(): number {
    return Atomics.load(this.words, REQUESTS);
  }

  /** How many of them were taken together from a queue; wraps. */
  get together(): number {
    return Atomics.load(this.words, TOGETHER);
  }

  /** Whoever waits for a request is not the only one. */
  get severalWait(): boolean {
    return this.words[WAITING] > 1;
  }

  /** Workers that serve small reads while these wait for the disk. */
  get reading(): number {
    return Atomics.load(this.words, READING);
  }

  /** How often a worker took small reads while these wait for the disk, and how many reads that were; both wrap. */
  get turns(): { count: number; reads: number } {
    return { count: Atomics.load(this.words, TURNS), reads: Atomics.load(this.words, TURN_READS) };
  }

  setDisk(disk: number): void {
    log('reads wait for %s', ['nothing', 'the disk', 'a slow disk'][disk]);
    Atomics.store(this.words, WAITED_FOR, disk);
  }

  /** Those that are too many park after their next request. */
  allow(limit: number): void {
    log('%d seats', limit);
    Atomics.store(this.words, LIMIT, limit);
    Atomics.add(this.words, WAKEUPS, 1);
    Atomics.notify(this.words, WAKEUPS);
  }

  /** Parks until a seat is free. */
  sit(): void {
    const { words } = this;
    for (;;) {
      const wakeups = Atomics.load(words, WAKEUPS);
      const taken = Atomics.load(words, TAKEN);
      if (taken < this.limit) {
        if (Atomics.compareExchange(words, TAKEN, taken, taken + 1) === taken) return;
        continue;
      }
      // Announced before the last look: whoever stands up meanwhile either is seen by it or sees the announcement.
      Atomics.add(words, PARKED, 1);
      if (Atomics.load(words, TAKEN) >= this.limit) Atomics.wait(words, WAKEUPS, wakeups);
      Atomics.sub(words, PARKED, 1);
    }
  }

  stand(): void {
    Atomics.sub(this.words, TAKEN, 1);
    this.wake();
  }

  /**
   * In the middle of a request that takes long. A parked worker is woken only when nobody waits for requests, and for a flush only when
   * fewer than half of the seats are taken: who serves a request is back soon as a rule, and a wake-up for each flush takes a third of
   * the speed of a program that flushes after each write while another program keeps a processor busy. The only one who sits has it done
   * only if somebody asks already, which is seldom the program that flushes; whoever asks later has to wait until the flush ends, or until the
   * daemon sees how long it takes and allows more seats.
   * @param forOthers it ends by what others do: somebody has to serve, however long those who sit take
   * @param channel where requests come from
   */
  stepAside(forOthers: boolean, channel: { isAsked: boolean }): void {
    const left = Atomics.sub(this.words, TAKEN, 1) - 1;
    if (!this.nobodyWaits) return;
    if (forOthers || (left < this.limit / 2 && (this.limit > 1 || channel.isAsked))) this.wake();
  }

  /** After `stepAside`: at once, even if there is one too many until the request is served. */
  stepBack(): void {
    Atomics.add(this.words, TAKEN, 1);
  }

  /** Between two requests: gives the seat away if there is one too many. */
  yield(): void {
    if (this.words[TAKEN] <= this.limit) return;
    this.stand();
    this.sit();
  }

  /**
   * Of reads that are taken together the first is timed: all begin with it.
   * @returns what `endRead` wants to know: when this read began, ms; 0 when it is not timed
   */
  startRead(size: number): number {
    if (size > SMALL_READ) return 0;
    const isTimed = this.disk === DISK.NONE ? ++this.reads % TIMED_READ === 0 : this.isFirst;
    this.isFirst = false;
    return isTimed ? this.now() : 0;
  }

  /**
   * When reads take long, others are to be taken meanwhile: several by each worker if they wait for the disk, by more workers otherwise. On
   * busy processors reads of the page cache take long at times, too, so the time alone does not tell.
   */
  endRead(began: number): void {
    if (began !== 0) this.judge(this.now() - began, false);
  }

  /** As `startRead` and `endRead`, of plain reads that are made at once: when these take long without the disk, the processors are busy. */
  startReads(): number {
    return this.now();
  }

  endReads(began: number): void {
    this.judge(this.now() - began, true);
  }

  private judge(ms: number, onlyDisk: boolean): void {
    this.diskReads = ms > DISK_MS ? this.diskReads + 1 : 0;
    this.slowDiskReads = ms > SLOW_DISK_MS ? this.slowDiskReads + 1 : 0;
    if (this.disk === DISK.NONE) {
      if (this.diskReads === 0) return;
      const blocks = this.blocks();
      const fromDisk = blocks !== this.blocksBefore;
      this.blocksBefore = blocks;
      if (onlyDisk && !fromDisk) this.diskReads = 0;
      if (this.diskReads < IN_A_ROW) return;
      if (fromDisk) this.setDisk(DISK.FAST);
      if (this.limit < this.words[BUSY_LIMIT]) this.allow(this.words[BUSY_LIMIT]);
    } else if (this.disk === DISK.FAST && this.slowDiskReads >= IN_A_ROW) this.setDisk(DISK.SLOW);
  }

  startReading(): void {
    this.isFirst = true;
    Atomics.add(this.words, READING, 1);
  }

  /** @param reads how many it took */
  endReading(reads: number): void {
    Atomics.sub(this.words, READING, 1);
    Atomics.add(this.words, TURNS, 1);
    Atomics.add(this.words, TURN_READS, reads);
  }

  private wake(): void {
    const { words } = this;
    // One who stood up because of one too many leaves no seat free; the next who stands up looks again.
    if (Atomics.load(words, PARKED) === 0 || Atomics.load(words, TAKEN) >= this.limit) return;
    Atomics.add(words, WAKEUPS, 1);
    Atomics.notify(words, WAKEUPS, 1);
  }

  startWaiting(): void {
    Atomics.add(this.words, WAITING, 1);
  }

  endWaiting(): void {
    Atomics.add(this.words, REQUESTS, 1);
    Atomics.sub(this.words, WAITING, 1);
  }

  countRequests(count: number): void {
    Atomics.add(this.words, REQUESTS, count);
  }

  countTogether(count: number): void {
    Atomics.add(this.words, TOGETHER, count);
  }

  /** @returns whether nobody else polls */
  startPolling(): boolean {
    return Atomics.compareExchange(this.words, POLLING, 0, 1) === 0;
  }

  endPolling(): void {
    Atomics.store(this.words, POLLING, 0);
  }
}
