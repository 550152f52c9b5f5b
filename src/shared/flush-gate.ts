/**
 * One flush an image at a time; requests that arrive during one share the next.
 *
 *   word 0  mutex of the running flush
 *   word 1  number of the last flush that began
 *   word 2  number of the last flush that ended well
 *   word 3  threads that wait for word 1 or 2 to change (through word 4)
 *   word 4  changes whenever a flush ends
 *
 * A caller needs a flush that *begins* after its call: only that one covers everything it wrote.
 */
import { sleepOn } from '../system/long-wait';
import { Mutex } from './mutex';

export const FLUSH_GATE_WORDS = 5;

const BEGUN = 1;
const DONE = 2;
const WAITERS = 3;
const ENDED = 4;

export class FlushGate {
  private readonly mutex: Mutex;

  constructor(
    private readonly words: Int32Array,
    private readonly base: number,
  ) {
    this.mutex = new Mutex(words, base);
  }

  /**
   * Returns when a flush that began after this call has succeeded: runs `flush` itself or shares another thread's.
   * When the shared one failed, this caller runs its own and gets the error that *it* meets.
   */
  pass(flush: () => void): void {
    const { words, base } = this;
    const wanted = Atomics.load(words, base + BEGUN) + 1;
    for (;;) {
      if (this.reached(wanted)) return;
      const ended = Atomics.load(words, base + ENDED);
      if (this.mutex.tryLock()) {
        try {
          if (this.reached(wanted)) return;
          const number = Atomics.add(words, base + BEGUN, 1) + 1;
          flush();
          Atomics.store(words, base + DONE, number);
          return;
        } finally {
          this.mutex.unlock();
          Atomics.add(words, base + ENDED, 1);
          if (Atomics.load(words, base + WAITERS) > 0) Atomics.notify(words, base + ENDED);
        }
      }
      Atomics.add(words, base + WAITERS, 1);
      if (!this.reached(wanted)) sleepOn(words, base + ENDED, ended);
      Atomics.sub(words, base + WAITERS, 1);
    }
  }

  /** How many flushes have begun; wraps. */
  get flushes(): number {
    return Atomics.load(this.words, this.base + BEGUN);
  }

  /** Wrapping difference: flush numbers may pass 2^31. */
  private reached(wanted: number): boolean {
    return ((Atomics.load(this.words, this.base + DONE) - wanted) | 0) >= 0;
  }
}
