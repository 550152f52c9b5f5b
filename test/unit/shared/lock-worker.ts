/** Jobs of threads that use one lock, mutex, gate or cache at once. Each reports what it found wrong. */
import { parentPort, workerData } from 'node:worker_threads';
import { FlushGate } from '../../../src/shared/flush-gate';
import { Mutex } from '../../../src/shared/mutex';
import { Records } from '../../../src/shared/records';
import { RwLock } from '../../../src/shared/rw-lock';
import { TableCache } from '../../../src/shared/table-cache';
import { Random } from '../../helpers/random';

export interface LockJob {
  kind: 'mutex' | 'rw-lock' | 'remap-one' | 'remap' | 'gate' | 'gate-fails' | 'load' | 'cache';
  buffer: SharedArrayBuffer;
  /** Of caches. */
  cache?: SharedArrayBuffer;
  index: number;
  threads: number;
  rounds: number;
}

/** Words of `buffer` that tests and workers share: 0 ready, 1 go; locks begin at 16, data at 64. */
export const READY = 0;
export const GO = 1;
export const LOCK = 16;
export const DATA = 64;
/** Byte offset of records in the buffer. */
export const RECORDS = 1024;
export const BUFFER_BYTES = 16 * 1024;
/** Bytes of a table slice in cache jobs. */
export const SLICE = 4096;

/** Longer than the spins of a lock: others go to sleep. */
function dawdle(random: Random): void {
  if (!random.chance(0.01)) return;
  const until = process.hrtime.bigint() + 300_000n;
  while (process.hrtime.bigint() < until);
}

function run(job: LockJob): string | undefined {
  const words = new Int32Array(job.buffer);
  const random = new Random(job.index + 1);
  switch (job.kind) {
    case 'mutex':
      return useMutex(job, words, random);
    case 'rw-lock':
      return useRwLock(job, words, random);
    case 'remap-one':
      return remapOnce(job, words);
    case 'remap':
      return useRemaps(job, words, random);
    case 'gate':
    case 'gate-fails':
      return useGate(job, words, random);
    case 'load':
      return loadOne(job, words);
    case 'cache':
      return useCache(job, words, random);
  }
}

function useMutex(job: LockJob, words: Int32Array, random: Random): string | undefined {
  const mutex = new Mutex(words, LOCK);
  for (let round = 0; round < job.rounds; round++) {
    if (random.chance(0.9) || !mutex.tryLock()) mutex.lock();
    // Not atomic on purpose: only exclusion makes the sum right.
    const value = words[DATA];
    dawdle(random);
    words[DATA] = value + 1;
    mutex.unlock();
  }
  return undefined;
}

function useRwLock(job: LockJob, words: Int32Array, random: Random): string | undefined {
  const lock = new RwLock(words, LOCK);
  for (let round = 0; round < job.rounds; round++) {
    if (random.chance(0.2)) {
      lock.lockExclusive();
      words[DATA]++;
      dawdle(random);
      words[DATA + 1]++;
      lock.unlockExclusive();
    } else {
      lock.lockShared();
      const first = words[DATA];
      dawdle(random);
      const second = words[DATA + 1];
      lock.unlockShared();
      if (first !== second) return `a reader saw ${first} and ${second}`;
    }
  }
  return undefined;
}

/** Remaps one range and writes down when its turn came. */
function remapOnce(job: LockJob, words: Int32Array): string | undefined {
  const records = new Records(job.buffer, RECORDS, job.threads, job.index);
  records.begin();
  records.startRemap(0, 100);
  words[DATA + 1 + Atomics.add(words, DATA, 1)] = job.index;
  records.endRemap();
  records.end();
  return undefined;
}

/** Cells of a small array belong to whoever remaps them. */
function useRemaps(job: LockJob, words: Int32Array, random: Random): string | undefined {
  const records = new Records(job.buffer, RECORDS, job.threads, job.index);
  const cells = 12;
  for (let round = 0; round < job.rounds; round++) {
    records.begin();
    const start = random.below(cells - 1);
    const end = Math.min(cells, start + random.between(1, 4));
    records.startRemap(start, end);
    for (let cell = start; cell < end; cell++) {
      if (Atomics.exchange(words, DATA + cell, 1) !== 0) return `cell ${cell} belongs to two`;
      words[DATA + cells + cell]++;
    }
    dawdle(random);
    for (let cell = start; cell < end; cell++) Atomics.store(words, DATA + cell, 0);
    records.endRemap();
    records.end();
  }
  return undefined;
}

/** Word DATA: writes so far; DATA + 1: writes that a flush has covered; DATA + 2: flushes; DATA + 3: one is running. */
function useGate(job: LockJob, words: Int32Array, random: Random): string | undefined {
  const gate = new FlushGate(words, LOCK);
  for (let round = 0; round < job.rounds; round++) {
    const own = Atomics.add(words, DATA, 1) + 1;
    let failed = false;
    let problem: string | undefined;
    try {
      gate.pass(() => {
        if (Atomics.exchange(words, DATA + 3, 1) !== 0) problem = 'two flushes at once';
        const covered = Atomics.load(words, DATA);
        Atomics.add(words, DATA + 2, 1);
        dawdle(random);
        Atomics.store(words, DATA + 3, 0);
        if (job.kind === 'gate-fails' && random.chance(0.4)) {
          failed = true;
          throw new Error(`flush of ${job.index}`);
        }
        Atomics.store(words, DATA + 1, covered);
      });
      if (Atomics.load(words, DATA + 1) < own) problem = `returned, but only ${words[DATA + 1]} of ${own} are covered`;
      if (failed) problem = 'a failed flush was reported as good';
    } catch (error) {
      if (!failed || (error as Error).message !== `flush of ${job.index}`)
        problem = `got another one's error: ${error}`;
    }
    if (problem !== undefined) return problem;
  }
  return undefined;
}

/** Loads one slice that every thread wants at the same moment. Word DATA counts reads. */
function loadOne(job: LockJob, words: Int32Array): string | undefined {
  const cache = new TableCache(job.cache as SharedArrayBuffer);
  for (let round = 0; round < job.rounds; round++) {
    // All threads are at the same slice: a barrier in word DATA + 1.
    Atomics.add(words, DATA + 1, 1);
    while (Atomics.load(words, DATA + 1) < job.threads * (round + 1));
    const offset = round * SLICE;
    const loaded = cache.load(1, { offset, length: SLICE, level: 'l2' }, (target, at, length) => {
      Atomics.add(words, DATA, 1);
      target.fill(1 + (round % 250), at, at + length);
    });
    if (!loaded) return `slice ${round} was not loaded`;
    const slot = cache.find(1, offset, 0);
    if (slot >= 0 && cache.bytes[slot * (cache.bytes.length / cache.capacity)] !== 1 + (round % 250))
      return `slice ${round} holds something else`;
  }
  return undefined;
}

/** Reads of more slices than there are slots; each says where it belongs. Thread 0 changes entries under its image's lock. */
function useCache(job: LockJob, words: Int32Array, random: Random): string | undefined {
  const cache = new TableCache(job.cache as SharedArrayBuffer);
  const lock = new RwLock(words, LOCK);
  const slotWords = cache.words32.length / cache.capacity;
  let hint = 0;
  let seen = 0;
  for (let round = 0; round < job.rounds; round++) {
    const image = 1 + random.below(2);
    const number = random.below(cache.capacity * 2);
    const offset = number * SLICE;
    const slot = cache.find(image, offset, hint);
    if (slot < 0) {
      cache.load(image, { offset, length: SLICE, level: 'l2' }, (_target, at) => {
        cache.words32.fill(number * 2 + image - 1, at / 4, at / 4 + SLICE / 4);
      });
      continue;
    }
    hint = slot;
    const version = cache.version(slot);
    const first = cache.words32[slot * slotWords];
    const last = cache.words32[slot * slotWords + SLICE / 4 - 1];
    if (!cache.unchanged(slot, version, image, offset)) continue;
    seen++;
    if (first !== number * 2 + image - 1 || last !== first)
      return `slice ${number} of image ${image} read as ${first}, ${last}`;
    if (job.index === 0 && image === 1 && random.chance(0.05)) {
      lock.lockExclusive();
      const claimed = cache.claim(slot, image, offset, 0, 8);
      const spans = claimed >= 0 ? cache.takeDirty(image) : [];
      for (const span of spans) {
        if (new Uint32Array(span.bytes.buffer)[0] !== (span.offset / SLICE) * 2)
          return `span at ${span.offset} holds another slice`;
      }
      cache.written(spans);
      lock.unlockExclusive();
    }
  }
  return seen > job.rounds / 10 ? undefined : `only ${seen} reads`;
}

if (parentPort !== null && workerData?.kind !== undefined) {
  const job = workerData as LockJob;
  const words = new Int32Array(job.buffer);
  Atomics.add(words, READY, 1);
  Atomics.wait(words, GO, 0);
  parentPort.postMessage(run(job) ?? null);
}
