/** The flusher thread: timed flushes of all images, and need-check cleared when nothing was allocated for a while. */
import fs from 'node:fs';
import { parentPort } from 'node:worker_threads';
import { attachImage, maintain } from '../block/open';
import { logOf } from '../log';
import { FLUSHER_THREAD, type FlusherOrders } from './crew';

const log = logOf('daemon:flusher');

/** How often the images are looked at. The flush itself is due when the oldest change is 5 s old. */
const INTERVAL_MS = 500;

function run(orders: FlusherOrders): void {
  const nodes = orders.images.map((image) => attachImage(image, FLUSHER_THREAD));
  const stop = new Int32Array(orders.stop);
  log('flusher looks after %d images', nodes.length);
  while (Atomics.load(stop, 0) === 0) {
    for (const node of nodes) maintain(node, Date.now());
    const { flusherDiesAtFile } = orders.testing;
    if (flusherDiesAtFile !== undefined && fs.existsSync(flusherDiesAtFile)) process.exit(70);
    Atomics.wait(stop, 0, 0, INTERVAL_MS);
  }
}

parentPort?.once('message', (orders: FlusherOrders) => {
  run(orders);
  parentPort?.close();
});
