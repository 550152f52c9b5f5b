/**
 * The threads of a mount beside the main thread: FUSE workers and the flusher. They are started before the images are open,
 * so that their loading goes on beside it, and wait for their orders.
 */
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import type { ImageDescriptor } from '../block/open';
import { Seats } from '../fuse/kernel/seats';
import type { KernelServeOptions } from '../fuse/session';
import type { ImageFileSystemOptions } from '../vfs/image-filesystem';
import type { TreePlan } from '../vfs/tree';
import { FlusherBell } from './bell';
import type { TestingConfig } from './config';
import { Governor } from './governor';

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
/** Serving leaves hardly any garbage, and this is memory that each worker has for itself: 13 MiB a worker instead of 17. */
const YOUNG_GENERATION_MB = 1;

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
  private governor: Governor | undefined;
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
    const governor = new Governor(seats, this.workersMax);
    this.governor = governor;
    let requests = seats.requests;
    // The first look has no pause before it.
    let idlePauses = -1;
    const look = (): void => {
      idlePauses = seats.requests === requests ? idlePauses + 1 : 0;
      requests = seats.requests;
      const idle = idlePauses >= IDLE_PAUSES;
      const held = governor.look(this.workers.length);
      const growing = this.workers.length < this.workersMax;
      if (growing && (idle || held)) {
        const worker = this.startThread('worker');
        this.ends.push(this.ended(worker, 'worker'));
        send(worker, this.workers.push(worker) - 1);
      }
      const pause = !governor.isCalm ? LOOK_BUSY_MS : growing ? LOOK_GROWING_MS : LOOK_IDLE_MS;
      this.looking = setTimeout(look, pause).unref();
    };
    look();
  }

  /** Before the main thread does what takes long: it can look after nobody meanwhile. */
  endCold(): void {
    this.governor?.endCold();
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
