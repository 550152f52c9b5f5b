/**
 * The threads of a mount beside the main thread: FUSE workers and the flusher. They are started before the images are open,
 * so that their loading goes on beside it, and wait for their orders.
 */
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import type { ImageDescriptor } from '../block/open';
import type { KernelServeOptions } from '../fuse/session';
import type { ImageFileSystemOptions } from '../vfs/image-filesystem';
import type { TreePlan } from '../vfs/tree';
import { FlusherBell } from './bell';
import type { TestingConfig } from './config';

/** Numbers of the threads in the images' shared state. */
export const MAIN_THREAD = 0;
export const FLUSHER_THREAD = 1;
export const FIRST_WORKER_THREAD = 2;

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
  readonly workersEnded: Promise<void>;
  /** Settles when a thread is lost: it has the reason. Never, if all goes well. */
  readonly lost: Promise<string>;

  private readonly workers: Worker[];
  private readonly flusher: Worker;
  private readonly flusherEnded: Promise<void>;
  private readonly bell = new FlusherBell();
  private reportLost: (reason: string) => void = () => {};

  constructor(workers: number) {
    this.lost = new Promise((resolve) => {
      this.reportLost = resolve;
    });
    this.workers = Array.from({ length: workers }, () => this.startThread('worker'));
    this.flusher = this.startThread('flusher');
    this.workersEnded = Promise.all(this.workers.map((worker) => this.ended(worker, 'worker'))).then(() => {});
    this.flusherEnded = this.ended(this.flusher, 'flusher');
  }

  get size(): number {
    return this.workers.length;
  }

  serve(orders: Omit<WorkerOrders, 'thread' | 'bell'>): void {
    this.workers.forEach((worker, index) => {
      const thread = FIRST_WORKER_THREAD + index;
      worker.postMessage({ ...orders, thread, bell: this.bell.buffer } satisfies WorkerOrders);
    });
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
    return new Worker(path.join(__dirname, `${name}.js`), { trackUnmanagedFds: false });
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
