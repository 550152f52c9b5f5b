/** A worker thread of the kernel session in tests: gets the descriptor as a message, so that it may start before the mount is made. */
import { parentPort, workerData } from 'node:worker_threads';
import { serveKernel } from '../../src/fuse/kernel/serve';
import type { KernelServeOptions } from '../../src/fuse/session';
import { MemoryFileSystem } from './memory-filesystem';

export interface ServeWorkerData {
  memory: SharedArrayBuffer;
  options: KernelServeOptions;
}

const { memory, options } = workerData as ServeWorkerData;

parentPort?.once('message', (fd: number) => {
  serveKernel(fd, new MemoryFileSystem(memory), options);
});
parentPort?.postMessage('started');
