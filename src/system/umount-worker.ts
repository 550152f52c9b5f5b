/** Thread of `umountAsync`: one umount2(2), answered with its errno, 0 when it succeeded. */
import { parentPort, workerData } from 'node:worker_threads';
import { SystemError } from './libc';
import { type UmountOptions, umount } from './mount';

const { target, options } = workerData as { target: string; options: UmountOptions };

try {
  umount(target, options);
  parentPort?.postMessage(0);
} catch (error) {
  if (!(error instanceof SystemError)) throw error;
  parentPort?.postMessage(-error.errno);
}
