/** Locks and queues in shared memory, used by real threads. A lost wake-up shows as a test that never ends. */
import * as path from 'node:path';
import { Worker } from 'node:worker_threads';
import test, { type ExecutionContext } from 'ava';
import { FLUSH_GATE_WORDS, FlushGate } from '../../../src/shared/flush-gate';
import { Mutex } from '../../../src/shared/mutex';
import { Records, recordsBytes } from '../../../src/shared/records';
import { createTableCache, TABLE_CACHE_MIN_BYTES, TableCache } from '../../../src/shared/table-cache';
import { LONG } from '../../helpers/random';
import { BUFFER_BYTES, DATA, GO, type LockJob, READY, RECORDS } from './lock-worker';

const THREADS = 4;
const MORE = LONG ? 50 : 1;

function shared(): { buffer: SharedArrayBuffer; words: Int32Array } {
  const buffer = new SharedArrayBuffer(BUFFER_BYTES);
  return { buffer, words: new Int32Array(buffer) };
}

/** Starts a thread; it waits for GO. */
function thread(t: ExecutionContext, job: LockJob): Promise<string | null> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(path.join(__dirname, 'lock-worker.js'), { workerData: job });
    t.teardown(() => worker.terminate());
    worker.once('message', resolve);
    worker.once('error', reject);
  });
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve));
}

/** Runs one job in several threads at once; fails with what they found. */
async function runAll(
  t: ExecutionContext,
  job: Omit<LockJob, 'index' | 'threads' | 'buffer'>,
  buffer: SharedArrayBuffer,
): Promise<void> {
  const words = new Int32Array(buffer);
  const threads = Array.from({ length: THREADS }, (_, index) => thread(t, { ...job, buffer, index, threads: THREADS }));
  await until(() => Atomics.load(words, READY) === THREADS);
  Atomics.store(words, GO, 1);
  Atomics.notify(words, GO);
  t.deepEqual(await Promise.all(threads), Array(THREADS).fill(null));
}

test('Mutex: one holder at a time, no wake-up lost', async (t) => {
  const { buffer, words } = shared();
  const rounds = 20_000 * MORE;
  await runAll(t, { kind: 'mutex', rounds }, buffer);
  t.is(words[DATA], THREADS * rounds);
});

test('Mutex.with() lets go when its body throws', (t) => {
  const { words } = shared();
  const mutex = new Mutex(words, 3);
  t.throws(() =>
    mutex.with(() => {
      t.false(mutex.tryLock());
      throw new Error('body');
    }),
  );
  t.true(mutex.tryLock());
});

test('RwLock: readers never see half a change, no wake-up lost', async (t) => {
  const { buffer, words } = shared();
  await runAll(t, { kind: 'rw-lock', rounds: 20_000 * MORE }, buffer);
  t.is(words[DATA], words[DATA + 1]);
  t.true(words[DATA] > 1000);
});

test('Records.startRemap(): overlapping clusters belong to one request at a time', async (t) => {
  const { buffer, words } = shared();
  await runAll(t, { kind: 'remap', rounds: 10_000 * MORE }, buffer);
  for (let cell = 0; cell < 12; cell++) t.is(words[DATA + cell], 0);
});

test('Records.startRemap(): overlapping requests go in the order in which they came', async (t) => {
  const { buffer, words } = shared();
  const records = new Records(buffer, RECORDS, 5, 0);
  records.begin();
  records.startRemap(50, 60);
  const waiting: Promise<string | null>[] = [];
  Atomics.store(words, GO, 1);
  for (const index of [3, 1, 4, 2]) {
    waiting.push(thread(t, { kind: 'remap-one', buffer, index, threads: 5, rounds: 1 }));
    // It has published its range when its record says remapping; only then comes the next.
    const base = RECORDS / 4 + (index + 1) * 16;
    await until(() => Atomics.load(words, base) === 2);
  }
  t.is(records.inFlight(), 5);
  t.is(words[DATA], 0, 'nobody went ahead');
  records.endRemap();
  records.end();
  t.deepEqual(await Promise.all(waiting), [null, null, null, null]);
  t.deepEqual([...words.subarray(DATA + 1, DATA + 5)], [3, 1, 4, 2]);
  t.is(records.inFlight(), 0);
});

test('Records.startRemap(): ranges that only touch do not wait', (t) => {
  const { buffer } = shared();
  const one = new Records(buffer, RECORDS, 3, 0);
  const two = new Records(buffer, RECORDS, 3, 1);
  const three = new Records(buffer, RECORDS, 3, 2);
  one.begin();
  two.begin();
  three.begin();
  one.startRemap(100, 200);
  two.startRemap(200, 300);
  three.startRemap(0, 100);
  t.is(one.inFlight(), 3);
});

test('Records.allEndedBefore(): waits for requests that began before the drop, not for later ones', (t) => {
  const buffer = new SharedArrayBuffer(recordsBytes(3));
  const [one, two, three] = [0, 1, 2].map((index) => new Records(buffer, 0, 3, index));
  t.true(one.allEndedBefore(one.nextGeneration()));
  two.begin();
  const number = one.nextGeneration();
  t.false(one.allEndedBefore(number));
  t.true(two.allEndedBefore(number), 'its own request holds nothing');
  three.begin();
  two.startRemap(0, 1);
  t.false(one.allEndedBefore(number));
  two.endRemap();
  t.false(one.allEndedBefore(number));
  two.end();
  t.true(one.allEndedBefore(number), 'the third began later');
  const next = one.nextGeneration();
  t.false(one.allEndedBefore(next));
  three.end();
  t.true(one.allEndedBefore(next));
});

test('Records: generations and sequence numbers wrap', (t) => {
  const buffer = new SharedArrayBuffer(recordsBytes(2));
  const words = new Int32Array(buffer);
  words[1] = 2 ** 31 - 1;
  words[2] = 2 ** 31 - 1;
  const [one, two] = [0, 1].map((index) => new Records(buffer, 0, 2, index));
  two.begin();
  const number = one.nextGeneration();
  t.is(number | 0, -(2 ** 31));
  t.false(one.allEndedBefore(number));
  two.startRemap(0, 10);
  one.begin();
  one.startRemap(20, 30);
  two.endRemap();
  two.startRemap(30, 40);
  two.endRemap();
  one.endRemap();
  two.end();
  t.true(one.allEndedBefore(number));
  t.throws(() => new Records(buffer, 0, 2, 2), { instanceOf: RangeError });
});

test('FlushGate.pass(): returns after a flush that began after the call; callers share flushes', async (t) => {
  const { buffer, words } = shared();
  const rounds = 5000 * MORE;
  await runAll(t, { kind: 'gate', rounds }, buffer);
  t.is(words[DATA], THREADS * rounds);
  t.true(words[DATA + 2] <= THREADS * rounds);
});

test('FlushGate.pass(): a failed flush is reported to the one who ran it; the others flush again', async (t) => {
  const { buffer, words } = shared();
  await runAll(t, { kind: 'gate-fails', rounds: 3000 * MORE }, buffer);
  t.true(words[DATA + 2] > 100);
});

test('FlushGate.pass(): flush numbers wrap', (t) => {
  const words = new Int32Array(new SharedArrayBuffer(4 * FLUSH_GATE_WORDS));
  words[1] = words[2] = 2 ** 31 - 1;
  const gate = new FlushGate(words, 0);
  let flushes = 0;
  for (let i = 0; i < 3; i++) gate.pass(() => flushes++);
  t.is(flushes, 3);
  t.throws(() =>
    gate.pass(() => {
      throw new Error('the host failed');
    }),
  );
  gate.pass(() => flushes++);
  t.is(flushes, 4);
});

test('TableCache.load(): concurrent misses of one slice share one read', async (t) => {
  const { buffer, words } = shared();
  const cache = createTableCache(TABLE_CACHE_MIN_BYTES);
  const rounds = new TableCache(cache).capacity / 2;
  await runAll(t, { kind: 'load', cache, rounds }, buffer);
  t.is(words[DATA], rounds);
});

test('TableCache: readers, loads and evictions of several threads never mix slices', async (t) => {
  const { buffer } = shared();
  await runAll(t, { kind: 'cache', cache: createTableCache(TABLE_CACHE_MIN_BYTES), rounds: 100_000 * MORE }, buffer);
});
