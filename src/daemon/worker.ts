/** A FUSE worker: builds its own objects over the shared memory and descriptors, then serves requests until the mount is gone. */
import { parentPort } from 'node:worker_threads';
import { attachImage } from '../block/open';
import { Seats } from '../fuse/kernel/seats';
import { serveKernel } from '../fuse/kernel/serve';
import { logOf } from '../log';
import type { FileSystem } from '../vfs/filesystem';
import { createFileSystem } from '../vfs/image-filesystem';
import { FlusherBell } from './bell';
import type { TestingConfig } from './config';
import type { WorkerOrders } from './crew';
import { warmUpWhileIdle } from './warm-up';

const log = logOf('daemon:worker');

function serve(orders: WorkerOrders): void {
  const nodes = orders.images.map((image) => (image === undefined ? undefined : attachImage(image, orders.thread)));
  const bell = new FlusherBell(orders.bell);
  const hooks = { onReplaced: (inos: readonly number[]) => bell.invalidate(inos) };
  const fileSystem = createFileSystem(orders.plan, nodes, orders.fileSystem, hooks);
  const { seats } = orders.serve;
  const idle = seats === undefined ? undefined : warmUpWhileIdle(orders.images, new Seats(seats));
  log('thread %d serves', orders.thread);
  serveKernel(orders.deviceFd, withTesting(fileSystem, orders.testing), { ...orders.serve, idle });
  log('thread %d leaves: the mount is gone', orders.thread);
}

/** A way for tests to lose a worker in the middle of a request. */
function withTesting(fileSystem: FileSystem, testing: TestingConfig): FileSystem {
  const { workerDiesAtLookup } = testing;
  if (workerDiesAtLookup === undefined) return fileSystem;
  const lookup = fileSystem.lookup.bind(fileSystem);
  fileSystem.lookup = (parent, name) => {
    // In a worker this ends the thread, not the process, and no `catch` or `finally` runs: as after a crash.
    if (name === workerDiesAtLookup) process.exit(70);
    return lookup(parent, name);
  };
  return fileSystem;
}

parentPort?.once('message', (orders: WorkerOrders) => {
  serve(orders);
  parentPort?.close();
});
