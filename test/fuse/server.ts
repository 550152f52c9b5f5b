/**
 * Program of the tests: mounts a MemoryFileSystem and serves it until it is unmounted. A process of its own, because nobody may touch a
 * mount from the thread that serves it, and because its end frees whoever waits.
 *
 * Argument: ServerRequest as JSON. Output: one line of ServerAnswer, `{"ended":true}` at the end. SIGTERM, or the end of its standard
 * input, unmounts.
 */
import { once } from 'node:events';
import * as path from 'node:path';
import { Worker } from 'node:worker_threads';
import { BlockError } from '../../src/errors';
import { mountKernel } from '../../src/fuse/kernel/mount';
import { createSeats, DISK, Seats } from '../../src/fuse/kernel/seats';
import { requirePackage, startNative } from '../../src/fuse/native/session';
import type { MountOptions, SessionKind } from '../../src/fuse/session';
import { abandon, unmount } from '../../src/fuse/unmount';
import { createMemory, MemoryFileSystem } from './memory-filesystem';
import type { ServeWorkerData } from './serve-worker';

export interface ServerRequest {
  session: SessionKind;
  mount: MountOptions;
  threads: number;
  /** As if reads had been found to wait for the disk. */
  onDisk?: boolean;
  maskInitFlags?: number;
  /** Become this user and group before mounting. */
  uid?: number;
}

export type ServerAnswer = { mounted: true } | { code: string; message: string } | { ended: true };

function say(answer: ServerAnswer): void {
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}

/** The modules are loaded and the threads run by now: the project's folder may be closed to that user. */
function become(uid: number | undefined): void {
  if (uid === undefined) return;
  process.setgroups?.([]);
  process.setgid?.(uid);
  process.setuid?.(uid);
}

function seatsOnDisk(threads: number): SharedArrayBuffer {
  const memory = createSeats(threads, threads);
  new Seats(memory).setDisk(DISK.FAST);
  return memory;
}

async function serveKernelSession(request: ServerRequest): Promise<void> {
  const { mount, maskInitFlags, onDisk } = request;
  const options = {
    kernelCache: mount.kernelCache,
    readOnly: mount.readOnly,
    ...(maskInitFlags && { maskInitFlags }),
    ...(onDisk && { seats: seatsOnDisk(request.threads) }),
  };
  const data: ServeWorkerData = { memory: createMemory(), options };
  const file = path.join(__dirname, 'serve-worker.js');
  const workers = Array.from(
    { length: request.threads },
    () => new Worker(file, { workerData: data, trackUnmanagedFds: false }),
  );
  await Promise.all(workers.map((worker) => once(worker, 'message')));
  become(request.uid);
  const fd = mountKernel(mount);
  for (const worker of workers) worker.postMessage(fd);
  say({ mounted: true });
  await Promise.all(workers.map((worker) => once(worker, 'exit')));
}

async function serveNativeSession(request: ServerRequest): Promise<void> {
  requirePackage();
  become(request.uid);
  const session = await startNative(request.mount, new MemoryFileSystem(createMemory()));
  say({ mounted: true });
  await session.ended;
}

let stopping = false;
async function stop(mountpoint: string): Promise<void> {
  if (stopping) return;
  stopping = true;
  try {
    await unmount(mountpoint, { lazy: true });
  } catch (error) {
    if (!(error instanceof BlockError && error.code === 'NOT_FOUND')) throw error;
  }
}

async function main(): Promise<void> {
  const request = JSON.parse(process.argv[2]) as ServerRequest;
  const { mountpoint } = request.mount;
  process.on('SIGTERM', () => void stop(mountpoint));
  process.stdin.resume().on('end', () => void stop(mountpoint));
  try {
    await (request.session === 'kernel' ? serveKernelSession(request) : serveNativeSession(request));
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    say({ code: error.code, message: error.message });
    process.exit(1);
  }
  say({ ended: true });
  process.exit(0);
}

process.on('uncaughtException', (error) => {
  console.error(error);
  try {
    abandon((JSON.parse(process.argv[2]) as ServerRequest).mount.mountpoint);
  } catch {
    // Not mounted.
  }
  process.kill(process.pid, 'SIGKILL');
});

void main();
