/**
 * How other threads reach the flusher thread, which sleeps between its rounds: to end it, or to have it tell the kernel that files read
 * differently from now on (a worker must not do that itself: the kernel may wait for a page whose request only a worker can serve).
 */
import { Mutex } from '../shared/mutex';
import { sleepOn } from '../system/long-wait';

const MUTEX = 0;
/** Moves when the flusher shall look here. */
const RUNG = 1;
const STOPPED = 2;
/** Files to invalidate; 0 when the flusher has done it. */
const COUNT = 3;
const WORDS = 4;
const FILES_MAX = 14;

/** Most that a worker waits for the kernel. It may be the only one, and the kernel wait for it. */
const PATIENCE_MS = 2000;

export class FlusherBell {
  private readonly words: Int32Array;
  private readonly inos: Float64Array;
  private readonly mutex: Mutex;

  constructor(readonly buffer: SharedArrayBuffer = new SharedArrayBuffer(WORDS * 4 + FILES_MAX * 8)) {
    this.words = new Int32Array(buffer, 0, WORDS);
    this.inos = new Float64Array(buffer, WORDS * 4, FILES_MAX);
    this.mutex = new Mutex(this.words, MUTEX);
  }

  stop(): void {
    Atomics.store(this.words, STOPPED, 1);
    this.ring();
  }

  get stopped(): boolean {
    return Atomics.load(this.words, STOPPED) !== 0;
  }

  /** Returns when the kernel has forgotten the files' content, or after two seconds: it then does so as soon as it can. */
  invalidate(inos: readonly number[]): void {
    this.mutex.with(() => {
      const few = inos.slice(0, FILES_MAX);
      this.inos.set(few);
      Atomics.store(this.words, COUNT, few.length);
      this.ring();
      sleepOn(this.words, COUNT, few.length, PATIENCE_MS);
    });
  }

  /** Flusher: sleeps until the bell rings or the time is over, then does what was asked for. */
  wait(ms: number, invalidate: (ino: number) => void): void {
    const rung = Atomics.load(this.words, RUNG);
    // What was asked for before that look rings no more.
    if (Atomics.load(this.words, COUNT) === 0 && !this.stopped) Atomics.wait(this.words, RUNG, rung, ms);
    const count = Atomics.load(this.words, COUNT);
    if (count === 0) return;
    try {
      for (let i = 0; i < count; i++) invalidate(this.inos[i]);
    } finally {
      Atomics.compareExchange(this.words, COUNT, count, 0);
      Atomics.notify(this.words, COUNT);
    }
  }

  private ring(): void {
    Atomics.add(this.words, RUNG, 1);
    Atomics.notify(this.words, RUNG);
  }
}
