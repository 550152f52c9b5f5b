import * as path from 'node:path';
import { Worker } from 'node:worker_threads';
import test, { type ExecutionContext } from 'ava';
import { FlusherBell } from '../../../src/daemon/bell';

/** Longer than any test may take: nothing here waits for the time to pass. */
const LONG_MS = 100_000;

/** A worker thread that has these numbers invalidated, one call after the other, and then exits. */
function asking(t: ExecutionContext, bell: FlusherBell, calls: number[][]): Promise<void> {
  const code = `
    const { workerData } = require('node:worker_threads');
    const { FlusherBell } = require(workerData.module);
    const bell = new FlusherBell(workerData.buffer);
    for (const call of workerData.calls) bell.invalidate(call);`;
  const module = path.join(__dirname, '../../../src/daemon/bell.js');
  const worker = new Worker(code, { eval: true, workerData: { module, buffer: bell.buffer, calls } });
  t.teardown(() => worker.terminate());
  return new Promise((resolve, reject) => {
    worker.once('error', reject);
    worker.once('exit', () => resolve());
  });
}

test('FlusherBell.wait() does what threads ask for, and they go on when it is done', async (t) => {
  const bell = new FlusherBell();
  const done: number[] = [];
  const threads = [asking(t, bell, [[2, 9], [3]]), asking(t, bell, [[4], [5, 6, 7]])];
  while (done.length < 7) bell.wait(LONG_MS, (ino) => done.push(ino));
  await Promise.all(threads);
  t.deepEqual([...done].sort(), [2, 3, 4, 5, 6, 7, 9]);
  t.is(done.indexOf(9), done.indexOf(2) + 1, 'what belongs together');
});

test('FlusherBell.wait() lets the thread go on when the kernel refuses', async (t) => {
  const bell = new FlusherBell();
  const thread = asking(t, bell, [[2]]);
  t.throws(
    () => {
      for (;;) {
        bell.wait(LONG_MS, () => {
          throw new Error('refused');
        });
      }
    },
    { message: 'refused' },
  );
  await t.notThrowsAsync(thread);
});

test('FlusherBell.invalidate() is not lost while the one before it takes longer than its caller waits', async (t) => {
  const bell = new FlusherBell();
  const thread = asking(t, bell, [[2], [2]]);
  const rung = { words: new Int32Array(bell.buffer), index: 1 };
  const done: number[] = [];
  while (done.length === 0) {
    bell.wait(LONG_MS, (ino) => {
      done.push(ino);
      // The thread gives up, and rings for the second time.
      Atomics.wait(rung.words, rung.index, 1);
    });
  }
  bell.wait(0, (ino) => done.push(ino));
  await thread;
  t.deepEqual(done, [2, 2]);
});

test('FlusherBell.stop() wakes the flusher, and is not missed by one that comes late', (t) => {
  const bell = new FlusherBell();
  t.false(bell.stopped);
  bell.stop();
  bell.wait(LONG_MS, () => t.fail());
  t.true(new FlusherBell(bell.buffer).stopped);
});
