/**
 * Host operations that take milliseconds as a rule. Others may want to work meanwhile in place of the thread that waits: whoever
 * runs the thread says here how they learn of it. State of this thread alone: every worker loads its own copy of this module.
 */
export interface LongWaitHooks {
  /** @param forOthers the wait ends by what other threads do: a request that nobody serves could be what it waits for */
  begins(forOthers: boolean): void;
  ends(): void;
}

let hooks: LongWaitHooks | undefined;

/** @param to undefined: nobody wants to know any more */
export function onLongWait(to: LongWaitHooks | undefined): void {
  hooks = to;
}

/** Runs `wait`, which blocks this thread. @param forOthers as in `LongWaitHooks` */
export function longWait<T>(wait: () => T, forOthers = false): T {
  const told = hooks;
  if (told === undefined) return wait();
  told.begins(forOthers);
  try {
    return wait();
  } finally {
    told.ends();
  }
}

/** Runs `body`, whose waits are short and nobody's business: nothing is told of them. */
export function untold<T>(body: () => T): T {
  const told = hooks;
  hooks = undefined;
  try {
    return body();
  } finally {
    hooks = told;
  }
}

/** `Atomics.wait` for what takes another thread's host I/O, or a request that another thread has yet to serve. */
export function sleepOn(words: Int32Array, index: number, value: number, timeoutMs?: number): void {
  longWait(() => Atomics.wait(words, index, value, timeoutMs), true);
}
