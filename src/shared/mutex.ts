/**
 * A mutex in one word of shared memory.
 *
 *   0 free   1 held   2 held, and somebody may sleep
 *
 * `Atomics.notify` takes a process-wide lock inside V8, so it is called only when the word says that somebody may sleep.
 */

/** Looks at the word this often before sleeping: longer than a critical section, shorter than a context switch. */
const SPINS = 200;

export class Mutex {
  constructor(
    private readonly words: Int32Array,
    private readonly index: number,
  ) {}

  lock(): void {
    const { words, index } = this;
    if (Atomics.compareExchange(words, index, 0, 1) === 0) return;
    for (let spin = 0; spin < SPINS; spin++) {
      if (Atomics.load(words, index) === 0 && Atomics.compareExchange(words, index, 0, 1) === 0) return;
    }
    // Whoever takes it from here on leaves 2 behind: perhaps one needless notify, never a lost one.
    while (Atomics.exchange(words, index, 2) !== 0) Atomics.wait(words, index, 2);
  }

  tryLock(): boolean {
    return Atomics.compareExchange(this.words, this.index, 0, 1) === 0;
  }

  unlock(): void {
    if (Atomics.exchange(this.words, this.index, 0) === 2) Atomics.notify(this.words, this.index, 1);
  }

  /** Runs `body` with the mutex held. */
  with<T>(body: () => T): T {
    this.lock();
    try {
      return body();
    } finally {
      this.unlock();
    }
  }
}
