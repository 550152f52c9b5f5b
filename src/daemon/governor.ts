/** Decides from time to time how many workers take requests: the seats of `fuse/kernel/seats.ts`. Runs on the main thread. */
import * as fs from 'node:fs';
import * as os from 'node:os';
import { DISK, type Seats } from '../fuse/kernel/seats';

/** Reads at a time, on the average, with which a few workers have enough to do: with fewer, others would wait for them in vain. */
const TOGETHER_READS = 4;
/** Less than so many on the average is no more than one at a time. */
const SEVERAL_READS = 1.5;
/** Looks in a row that find nobody waiting for the disk until all is as at first: one second. */
const CALM_LOOKS = 20;

/**
 * How many workers take requests while the page cache answers them all: as many as leave half of the processors to those who
 * ask, but two, so that one sleeps while the other polls (`fuse/kernel/spinner.ts`). Measured on two cores, 4 KiB random reads:
 * 8 jobs 100,000 a second with four workers, 125,000 with two.
 */
export const CALM_SEATS = Math.max(2, Math.floor(os.availableParallelism() / 2));

/**
 * As many while the page cache answers a queue: one who takes several requests together (`fuse/kernel/read-batch.ts`) leaves the other processor to those who ask,
 * and nobody is to be woken. Measured on two cores, 4 KiB random reads: with 8 jobs 45,400 a second instead of 41,800 with two, with 4 jobs
 * 45,000 instead of 33,900. But with 2 jobs two serve better.
 */
export const QUEUE_SEATS = Math.min(CALM_SEATS, Math.max(1, Math.floor(os.availableParallelism() / 2)));
/** There is a queue if this part of all requests was taken together. */
const QUEUE_SHARE = 1 / 4;

/**
 * How many take requests at first, until so many have come, unless these wait for something. Each worker has to compile its code, and two
 * that take turns do it twice, on the processors that whoever asks needs, too. Measured on two cores right after mounting, overlay of qcow2:
 * 64 KiB 1.2 to 1.4 times, 4 KiB in sequence 1.3 times as fast as with two at once.
 */
export const COLD_SEATS = 1;
const COLD_REQUESTS = 32_768;
/** Looks with requests until that ends in any case: 2 to 4 s, what is served has been compiled by then. */
const COLD_LOOKS = 20;
/** Fewer requests since the last look, while the only one who sits has one in hand: it does not compile, it waits or has long ones. */
const HELD_REQUESTS = 25;
/** Looks in a row that find it so: one may have met the first requests of all. */
const HELD_LOOKS = 2;

/**
 * How many take requests while each takes many small reads at a time, which wait for the disk, and while reads keep the processors busy:
 * as there are processors. Measured on two cores, 4 KiB random reads of a cold image with 16 jobs in the first four seconds: 24,000 a second
 * with two, 21,500 with four, 19,500 with four to eight.
 */
export const BUSY_SEATS = Math.max(CALM_SEATS, os.availableParallelism());

export class Governor {
  private calmLooks = 0;
  private turns = { count: 0, reads: 0 };
  private requests = 0;
  private together = 0;
  private isCold: boolean;
  private coldLooks = 0;
  private heldLooks = 0;

  /**
   * @param workersMax how many workers there may be
   * @param countOnDisk threads of this process that wait for the disk now
   */
  constructor(
    private readonly seats: Seats,
    private readonly workersMax: number,
    private readonly countOnDisk = threadsOnDisk,
  ) {
    this.isCold = seats.limit < CALM_SEATS;
  }

  /** Few sit, and the page cache answers. */
  get isCalm(): boolean {
    return this.seats.limit <= CALM_SEATS && this.seats.disk === DISK.NONE;
  }

  /**
   * Requests that the page cache answers keep a few workers busy, and more of them would only take turns on the same processors. Requests
   * that wait for the disk keep as many workers waiting as there are, and the disk could do more at once: then all take their seats, and
   * while more than half of all still sleep in the kernel, one after the other is added. Half is not enough: of two one may flush, and the
   * other be about to wait for the next request. Only small reads, of which workers take many at a time, need few workers all the same,
   * unless the disk is slow: then others would wait for too long.
   * @param workers how many there are
   * @returns whether more workers would do more
   */
  look(workers: number): boolean {
    const { seats } = this;
    const onDisk = seats.allBusy ? this.countOnDisk() : 0;
    const came = this.cameSinceLastLook();
    if (this.isCold) this.warmUp(came.requests, onDisk);
    if (!this.isCold && this.isCalm) this.matchQueue(came, onDisk);
    this.calmDown(onDisk);
    const { turns, reads } = this.sinceLastLook();
    // While one sits, one on the disk may be another, which flushes.
    const sitting = Math.min(Math.max(seats.limit, CALM_SEATS), workers);
    if (seats.disk === DISK.NONE) {
      if (onDisk <= sitting / 2) return false;
      // Perhaps by small reads whose blocks the kernel does not count, as those of NFS: few workers show whether each can take many.
      seats.setDisk(DISK.FAST);
      seats.allow(BUSY_SEATS);
      return false;
    }
    // Between two bursts: what was right for the last one is so for the next.
    if (turns === 0 && onDisk === 0) return false;
    const together = seats.disk === DISK.FAST && turns > 0 && reads >= turns * this.enough(sitting);
    const isHeld = (together ? onDisk - seats.reading : onDisk) > sitting / 2;
    const limit = together && !isHeld ? BUSY_SEATS : Math.max(CALM_SEATS, this.workersMax);
    if (limit !== seats.limit) seats.allow(limit);
    return isHeld;
  }

  /** Whether the few who sit at first still suffice. Who is held up may have a flush, a host that does not answer, or much to unpack. */
  private warmUp(came: number, onDisk: number): void {
    const { seats } = this;
    const { requests } = seats;
    if (came > 0) this.coldLooks++;
    const isHeld = onDisk > 0 || (requests > 0 && came < HELD_REQUESTS && seats.nobodyWaits);
    this.heldLooks = isHeld ? this.heldLooks + 1 : 0;
    if (requests >= COLD_REQUESTS || this.coldLooks >= COLD_LOOKS || this.heldLooks >= HELD_LOOKS) this.endCold();
  }

  /** From now on no single request may keep all others waiting. */
  endCold(): void {
    this.isCold = false;
    if (this.seats.limit < CALM_SEATS) this.seats.allow(CALM_SEATS);
  }

  /** Whoever is held up does not take many: then others serve as well, from this look on. */
  private matchQueue(came: { requests: number; together: number }, onDisk: number): void {
    const isQueue = came.requests >= HELD_REQUESTS && came.together >= came.requests * QUEUE_SHARE && onDisk === 0;
    const limit = isQueue ? QUEUE_SEATS : CALM_SEATS;
    if (limit !== this.seats.limit) this.seats.allow(limit);
  }

  private cameSinceLastLook(): { requests: number; together: number } {
    const { requests, together } = this.seats;
    const came = { requests: requests - this.requests, together: together - this.together };
    this.requests = requests;
    this.together = together;
    return came;
  }

  /** Reads at a time, on the average, that `sitting` workers must take for BUSY_SEATS of them to have enough. */
  private enough(sitting: number): number {
    return Math.max(SEVERAL_READS, (TOGETHER_READS * BUSY_SEATS) / Math.max(BUSY_SEATS, sitting));
  }

  /** Counted while something is different: what was quiet before says nothing of now. */
  private calmDown(onDisk: number): void {
    if (onDisk > 0 || this.isCalm) this.calmLooks = 0;
    else if (++this.calmLooks === CALM_LOOKS) {
      this.calmLooks = 0;
      this.seats.setDisk(DISK.NONE);
      this.seats.allow(CALM_SEATS);
    }
  }

  private sinceLastLook(): { turns: number; reads: number } {
    const { count, reads } = this.seats.turns;
    const before = this.turns;
    this.turns = { count, reads };
    return { turns: count - before.count, reads: reads - before.reads };
  }
}

/**
 * Where the kernel lets a thread sleep that waits for the disk: for a page to be read or written, or for room in the disk's queue. Not
 * among them are the locks of the host's file systems: while one thread writes to an image's file the others wait for it, and more
 * of them would only wait, too. A worker waits for its ring only while reads in it wait for the disk.
 */
const ON_DISK = /folio_wait|page_bit|lock_page|wait_on_buffer|^blk_|io_cqring_wait/;

/**
 * Threads of this process that wait for the disk. Source: proc(5), /proc/PID/wchan. A kernel that does not name the place (without
 * CONFIG_KALLSYMS) has none: workers are then only added while nobody asks, and what slow reads change ends after a second, until the next.
 */
export function threadsOnDisk(): number {
  let count = 0;
  for (const tid of fs.readdirSync('/proc/self/task')) {
    try {
      if (ON_DISK.test(fs.readFileSync(`/proc/self/task/${tid}/wchan`, 'latin1'))) count++;
    } catch {
      // The thread ended between the two looks.
    }
  }
  return count;
}
