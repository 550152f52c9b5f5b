/** A worker that takes a seat, says so, and stands up when it is told to; see seats.test.ts. */
import { parentPort, workerData } from 'node:worker_threads';
import { Seats } from '../../../src/fuse/kernel/seats';

const seats = new Seats(workerData as SharedArrayBuffer);
seats.sit();
parentPort?.postMessage('sits');
parentPort?.once('message', () => {
  seats.stand();
  parentPort?.close();
});
