/**
 * How other threads reach the flusher thread, which sleeps between its rounds: to end it, or to have it tell the kernel that files read
 * differently from now on (a worker must not do that itself: the kernel may wait for a page whose request only a worker can serve).
 */
import { Mutex } from '../shared/mutex';
import { sleepOn } from '../system/long-wait';

/** Of the list of files. */
const MUTEX = 0;
/** Moves when the flusher shall look here. */
const RUNG = 1;
const STOPPED = 2;
/** Files in the list: asked for, and the flusher has not begun with them. */
const COUNT = 3;
/** Number of the last request, and of the last one that is done. */
const ASKED = 4;
const DONE = 5;
const WORDS = 6;
/** More than the disks of all images that are reverted while the kernel has not answered for the ones before. */
const FILES_MAX = 1024;

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
    const asked = this.mutex.with(() => {
      for (const ino of inos) this.add(ino);
      return Atomics.add(this.words, ASKED, 1) + 1;
    });
    this.ring();
    const until = performance.now() + PATIENCE_MS;
    for (;;) {
      const done = Atomics.load(this.words, DONE);
      const left = until - performance.now();
      if (done >= asked || left <= 0) return;
      sleepOn(this.words, DONE, done, left);
    }
  }

  /** Flusher: sleeps until the bell rings or the time is over, then does what was asked for. */
  wait(ms: number, invalidate: (ino: number) => void): void {
    const { words } = this;
    const rung = Atomics.load(words, RUNG);
    // What was asked for before that look rings no more.
    if (!this.isAsked && !this.stopped) Atomics.wait(words, RUNG, rung, ms);
    if (!this.isAsked) return;
    // Whoever asks for the same file from here on means its content from here on.
    const { files, asked } = this.mutex.with(() => ({
      files: this.inos.slice(0, Atomics.exchange(words, COUNT, 0)),
      asked: Atomics.load(words, ASKED),
    }));
    try {
      for (const ino of files) invalidate(ino);
    } finally {
      Atomics.store(words, DONE, asked);
      Atomics.notify(words, DONE);
    }
  }

  private get isAsked(): boolean {
    return Atomics.load(this.words, ASKED) !== Atomics.load(this.words, DONE);
  }

  /** Holds the mutex. */
  private add(ino: number): void {
    const count = Atomics.load(this.words, COUNT);
    if (count === FILES_MAX || this.inos.subarray(0, count).includes(ino)) return;
    this.inos[count] = ino;
    Atomics.store(this.words, COUNT, count + 1);
  }

  private ring(): void {
    Atomics.add(this.words, RUNG, 1);
    Atomics.notify(this.words, RUNG);
  }
}
