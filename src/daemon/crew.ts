/**
 * The threads of a mount beside the main thread: FUSE workers and the flusher. They are started before the images are open,
 * so that their loading goes on beside it, and wait for their orders.
 */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import type { ImageDescriptor } from '../block/open';
import { DISK, Seats } from '../fuse/kernel/seats';
import type { KernelServeOptions } from '../fuse/session';
import type { ImageFileSystemOptions } from '../vfs/image-filesystem';
import type { TreePlan } from '../vfs/tree';
import { FlusherBell } from './bell';
import type { TestingConfig } from './config';

/** Numbers of the threads in the images' shared state. */
export const MAIN_THREAD = 0;
export const FLUSHER_THREAD = 1;
export const FIRST_WORKER_THREAD = 2;

/** How often the crew looks whether the disk holds it up, ms: while it does, while the crew may still grow, and otherwise. */
const LOOK_BUSY_MS = 50;
const LOOK_GROWING_MS = 100;
const LOOK_IDLE_MS = 200;
/**
 * Pauses of LOOK_GROWING_MS in a row without a request until the crew grows: half a second. To start a worker takes 0.1 s of a
 * processor, and whoever has just mounted is about to come with work.
 */
const IDLE_PAUSES = 5;
/** Reads at a time, on the average, with which a few workers have enough to do: with fewer, others would wait for them in vain. */
const TOGETHER_READS = 4;
/** Looks in a row that find nobody waiting for the disk until all is as at first: one second. */
const CALM_LOOKS = 20;
/** Serving leaves hardly any garbage, and this is memory that each worker has for itself: 13 MiB a worker instead of 17. */
const YOUNG_GENERATION_MB = 1;

/**
 * How many workers take requests while the page cache answers them all: as many as leave half of the processors to those who
 * ask, but two, so that one sleeps while the other polls (`fuse/kernel/spinner.ts`). Measured on two cores, 4 KiB random reads:
 * 8 jobs 100,000 a second with four workers, 125,000 with two.
 */
export const CALM_SEATS = Math.max(2, Math.floor(os.availableParallelism() / 2));

/**
 * How many take requests while each takes many small reads at a time, which wait for the disk, and while reads keep the processors busy:
 * as there are processors. Measured on two cores, 4 KiB random reads of a cold image with 16 jobs in the first four seconds: 24,000 a second
 * with two, 21,500 with four, 19,500 with four to eight.
 */
export const BUSY_SEATS = Math.max(CALM_SEATS, os.availableParallelism());

export interface WorkerOrders {
  thread: number;
  deviceFd: number;
  plan: TreePlan;
  images: (ImageDescriptor | undefined)[];
  fileSystem: ImageFileSystemOptions;
  serve: KernelServeOptions;
  /** Of a `FlusherBell`. */
  bell: SharedArrayBuffer;
  testing: TestingConfig;
}

export interface FlusherOrders {
  images: ImageDescriptor[];
  /** Of a `FlusherBell`. */
  bell: SharedArrayBuffer;
  /** /dev/fuse, where the kernel takes orders to forget; absent in the native session. */
  deviceFd?: number;
  testing: TestingConfig;
}

export class Crew {
  /** All workers have returned from serving: the mount is gone. */
  get workersEnded(): Promise<void> {
    return this.endOf(this.ends.length);
  }
  /** Settles when a thread is lost: it has the reason. Never, if all goes well. */
  readonly lost: Promise<string>;

  private readonly workers: Worker[];
  private readonly ends: Promise<void>[];
  private looking: NodeJS.Timeout | undefined;
  private calmLooks = 0;
  private turns = { count: 0, reads: 0 };
  private readonly flusher: Worker;
  private readonly flusherEnded: Promise<void>;
  private readonly bell = new FlusherBell();
  private reportLost: (reason: string) => void = () => {};

  /**
   * @param workers how many start now
   * @param workersMax how many there may be later
   */
  constructor(
    workers: number,
    private readonly workersMax: number,
  ) {
    this.lost = new Promise((resolve) => {
      this.reportLost = resolve;
    });
    this.workers = Array.from({ length: workers }, () => this.startThread('worker'));
    this.flusher = this.startThread('flusher');
    this.ends = this.workers.map((worker) => this.ended(worker, 'worker'));
    this.flusherEnded = this.ended(this.flusher, 'flusher');
  }

  get size(): number {
    return this.workers.length;
  }

  /**
   * Also adds workers up to the most there may be, one at a time: while nobody asks for anything, for the day when the disk is slow,
   * and when everybody waits for it. In the midst of such a load it would take a second to start one.
   */
  serve(orders: Omit<WorkerOrders, 'thread' | 'bell'>): void {
    const send = (worker: Worker, index: number) => {
      const thread = FIRST_WORKER_THREAD + index;
      worker.postMessage({ ...orders, thread, bell: this.bell.buffer } satisfies WorkerOrders);
    };
    this.workers.forEach(send);
    if (orders.serve.seats === undefined) return;
    const seats = new Seats(orders.serve.seats);
    let requests = seats.requests;
    // The first look has no pause before it.
    let idlePauses = -1;
    const look = (): void => {
      idlePauses = seats.requests === requests ? idlePauses + 1 : 0;
      requests = seats.requests;
      const idle = idlePauses >= IDLE_PAUSES;
      const held = this.heldUp(seats);
      const growing = this.workers.length < this.workersMax;
      if (growing && (idle || held)) {
        const worker = this.startThread('worker');
        this.ends.push(this.ended(worker, 'worker'));
        send(worker, this.workers.push(worker) - 1);
      }
      const pause = !isCalm(seats) ? LOOK_BUSY_MS : growing ? LOOK_GROWING_MS : LOOK_IDLE_MS;
      this.looking = setTimeout(look, pause).unref();
    };
    look();
  }

  /**
   * Requests that the page cache answers keep a few workers busy, and more of them would only take turns on the same processors. Requests
   * that wait for the disk keep as many workers waiting as there are, and the disk could do more at once: then all take their seats, and
   * while more than half of all still sleep in the kernel, one after the other is added. Half is not enough: of two one may flush, and the
   * other be about to wait for the next request. Only small reads, of which workers take many at a time, need few workers all the same,
   * unless the disk is slow: then others would wait for too long.
   * @returns whether more workers would do more
   */
  private heldUp(seats: Seats): boolean {
    const onDisk = seats.allBusy ? threadsOnDisk() : 0;
    // Counted while something is different: what was quiet before says nothing of now.
    this.calmLooks = onDisk === 0 && !isCalm(seats) ? this.calmLooks + 1 : 0;
    if (this.calmLooks === CALM_LOOKS) {
      seats.setDisk(DISK.NONE);
      seats.allow(CALM_SEATS);
    }
    const together = this.takeTogether(seats);
    const held = together ? onDisk - seats.reading : onDisk;
    const isHeld = held > Math.min(seats.limit, this.workers.length) / 2;
    if (seats.disk === DISK.NONE) {
      if (!isHeld) return false;
      // Perhaps by small reads whose blocks the kernel does not count, as those of NFS: few workers show whether each can take many.
      seats.setDisk(DISK.FAST);
      seats.allow(BUSY_SEATS);
      return false;
    }
    const limit = together && !isHeld ? BUSY_SEATS : Math.max(CALM_SEATS, this.workersMax);
    if (limit !== seats.limit) seats.allow(limit);
    return isHeld;
  }

  /** Since the last look workers have taken many small reads at a time. */
  private takeTogether(seats: Seats): boolean {
    const { count, reads } = seats.turns;
    const turns = count - this.turns.count;
    const together = turns > 0 && reads - this.turns.reads >= TOGETHER_READS * turns;
    this.turns = { count, reads };
    return together && seats.disk === DISK.FAST;
  }

  /** Resolves when all workers have ended, those that were added meanwhile, too. */
  private async endOf(count: number): Promise<void> {
    await Promise.all(this.ends.slice(0, count));
    if (this.ends.length > count) return this.endOf(this.ends.length);
    clearTimeout(this.looking);
  }

  flushRegularly(orders: Omit<FlusherOrders, 'bell'>): void {
    this.flusher.postMessage({ ...orders, bell: this.bell.buffer } satisfies FlusherOrders);
  }

  async stopFlusher(): Promise<void> {
    this.bell.stop();
    await this.flusherEnded;
  }

  private startThread(name: 'worker' | 'flusher'): Worker {
    // Descriptors belong to the main thread: a thread that ends must not close what others still use.
    return new Worker(path.join(__dirname, `${name}.js`), {
      trackUnmanagedFds: false,
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_GENERATION_MB },
    });
  }

  /** Resolves when the thread has ended as it should; otherwise reports it as lost and never resolves. */
  private ended(thread: Worker, name: string): Promise<void> {
    return new Promise((resolve) => {
      thread.once('error', (error) => this.reportLost(`A ${name} thread has failed: ${error.message}`));
      thread.once('exit', (code) => {
        if (code === 0) resolve();
        else this.reportLost(`A ${name} thread has ended unexpectedly (exit code ${code})`);
      });
    });
  }
}

/** Few sit, and the page cache answers. */
function isCalm(seats: Seats): boolean {
  return seats.limit <= CALM_SEATS && seats.disk === DISK.NONE;
}

/**
 * Where the kernel lets a thread sleep that waits for the disk: for a page to be read or written, or for room in the disk's queue. Not
 * among them are the locks of the host's file systems: while one thread writes to an image's file the others wait for it, and more
 * of them would only wait, too.
 */
const ON_DISK = /folio_wait|page_bit|lock_page|wait_on_buffer|^blk_/;

/**
 * Threads of this process that wait for the disk. Source: proc(5), /proc/PID/wchan. A kernel that does not name the place (without
 * CONFIG_KALLSYMS) has none: workers are then only added while nobody asks, and what slow reads change ends after a second, until the next.
 */
function threadsOnDisk(): number {
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
