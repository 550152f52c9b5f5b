/** The flusher thread: timed flushes of all images, need-check cleared when nothing was allocated for a while, and
 * notes to the kernel for the workers (bell.ts). */
import fs from 'node:fs';
import { parentPort } from 'node:worker_threads';
import { attachImage, maintain } from '../block/open';
import { invalidateInode } from '../fuse/kernel/invalidate';
import { logOf } from '../log';
import { FlusherBell } from './bell';
import { FLUSHER_THREAD, type FlusherOrders } from './crew';

const log = logOf('daemon:flusher');

/** How often the images are looked at. The flush itself is due when the oldest change is 5 s old. */
const INTERVAL_MS = 500;

function run(orders: FlusherOrders): void {
  const nodes = orders.images.map((image) => attachImage(image, FLUSHER_THREAD));
  const bell = new FlusherBell(orders.bell);
  const { deviceFd } = orders;
  const forget = (ino: number): void => {
    try {
      if (deviceFd !== undefined) invalidateInode(deviceFd, ino);
    } catch (error) {
      // Somebody may see old pages for a while; that is no reason to end.
      log('inode %d: %O', ino, error);
    }
  };
  log('flusher looks after %d images', nodes.length);
  while (!bell.stopped) {
    for (const node of nodes) maintain(node, Date.now());
    const { flusherDiesAtFile } = orders.testing;
    if (flusherDiesAtFile !== undefined && fs.existsSync(flusherDiesAtFile)) process.exit(70);
    bell.wait(INTERVAL_MS, forget);
  }
}

parentPort?.once('message', (orders: FlusherOrders) => {
  run(orders);
  parentPort?.close();
});
