/**
 * A read-write lock in four words of shared memory. It guards the mapping of one image in memory; no host I/O happens
 * under it, so it is held for microseconds and a short spin nearly always suffices; only a flush that copies many dirty
 * tables holds it for milliseconds.
 *
 *   word 0  state: -1 one writer, 0 free, n readers
 *   word 1  writers that wait: new readers let them go first, so a stream of readers cannot starve a writer. A writer
 *           does I/O before it comes back, so readers get their turn too.
 *   word 2  threads that sleep or are about to
 *   word 3  wake-ups: sleepers wait for this word to change
 *
 * No wake-up is lost: a sleeper announces itself in word 2, then tries once more, then sleeps on the value of word 3 that
 * it read before; whoever unlocks changes the state first and looks at word 2 second.
 */

/** Words of shared memory that a lock takes. */
export const RW_LOCK_WORDS = 4;

const WRITERS = 1;
const SLEEPERS = 2;
const WAKEUPS = 3;
const SPINS = 200;

export class RwLock {
  constructor(
    private readonly words: Int32Array,
    private readonly base: number,
  ) {}

  lockShared(): void {
    if (this.tryShared()) return;
    for (let spin = 0; spin < SPINS; spin++) if (this.tryShared()) return;
    for (;;) {
      const wakeups = Atomics.load(this.words, this.base + WAKEUPS);
      Atomics.add(this.words, this.base + SLEEPERS, 1);
      const got = this.tryShared();
      if (!got) Atomics.wait(this.words, this.base + WAKEUPS, wakeups);
      Atomics.sub(this.words, this.base + SLEEPERS, 1);
      if (got || this.tryShared()) return;
    }
  }

  unlockShared(): void {
    if (Atomics.sub(this.words, this.base, 1) === 1) this.wake();
  }

  lockExclusive(): void {
    if (Atomics.compareExchange(this.words, this.base, 0, -1) === 0) return;
    Atomics.add(this.words, this.base + WRITERS, 1);
    try {
      for (let spin = 0; spin < SPINS; spin++) if (this.tryExclusive()) return;
      for (;;) {
        const wakeups = Atomics.load(this.words, this.base + WAKEUPS);
        Atomics.add(this.words, this.base + SLEEPERS, 1);
        const got = this.tryExclusive();
        if (!got) Atomics.wait(this.words, this.base + WAKEUPS, wakeups);
        Atomics.sub(this.words, this.base + SLEEPERS, 1);
        if (got || this.tryExclusive()) return;
      }
    } finally {
      Atomics.sub(this.words, this.base + WRITERS, 1);
    }
  }

  unlockExclusive(): void {
    Atomics.store(this.words, this.base, 0);
    this.wake();
  }

  /** Runs `body` with the exclusive side held. */
  withExclusive<T>(body: () => T): T {
    this.lockExclusive();
    try {
      return body();
    } finally {
      this.unlockExclusive();
    }
  }

  private tryShared(): boolean {
    const { words, base } = this;
    if (Atomics.load(words, base + WRITERS) !== 0) return false;
    const state = Atomics.load(words, base);
    return state >= 0 && Atomics.compareExchange(words, base, state, state + 1) === state;
  }

  private tryExclusive(): boolean {
    return Atomics.load(this.words, this.base) === 0 && Atomics.compareExchange(this.words, this.base, 0, -1) === 0;
  }

  private wake(): void {
    if (Atomics.load(this.words, this.base + SLEEPERS) === 0) return;
    Atomics.add(this.words, this.base + WAKEUPS, 1);
    Atomics.notify(this.words, this.base + WAKEUPS);
  }
}
