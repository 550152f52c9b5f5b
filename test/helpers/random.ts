/** Seeded random numbers: a failing run is replayed with `SEED=… npx ava …`. */
import type { ExecutionContext } from 'ava';

/** `IMAGEFS_LONG=1`: the same tests with many more programs. */
export const LONG = process.env.IMAGEFS_LONG === '1';

/** Seed of this run: SEED, else a new one in long runs, else always the same, so that a quick run has one outcome. */
export function seedOf(t: ExecutionContext, usual: number): number {
  const seed = Number(process.env.SEED ?? (LONG ? Math.floor(Math.random() * 1e9) : usual));
  t.log(`SEED=${seed}`);
  return seed;
}

export class Random {
  private state: number;

  constructor(seed: number) {
    this.state = seed >>> 0;
  }

  /** In [0, 1). Mulberry32. */
  next(): number {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let x = this.state;
    x = Math.imul(x ^ (x >>> 15), x | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  }

  /** Whole number in [0, end). */
  below(end: number): number {
    return Math.floor(this.next() * end);
  }

  /** Whole number in [from, to]. */
  between(from: number, to: number): number {
    return from + this.below(to - from + 1);
  }

  chance(probability: number): boolean {
    return this.next() < probability;
  }

  pick<T>(choices: readonly T[]): T {
    return choices[this.below(choices.length)];
  }
}

/** A prime length: the same bytes never line up with sectors or clusters again. */
const PATTERN_BYTES = 65521;
const pattern = (() => {
  const random = new Random(7);
  const bytes = new Uint8Array(PATTERN_BYTES * 2);
  for (let i = 0; i < PATTERN_BYTES; i++) bytes[i] = bytes[i + PATTERN_BYTES] = 1 + random.below(255);
  return bytes;
})();

/** Bytes that tell where they belong: a function of the offset and of `tag`, never zero. */
export function fillPattern(target: Uint8Array, at: number, offset: number, length: number, tag: number): void {
  let from = ((offset % PATTERN_BYTES) + ((tag * 7919) % PATTERN_BYTES)) % PATTERN_BYTES;
  for (let done = 0; done < length; ) {
    const count = Math.min(length - done, PATTERN_BYTES);
    target.set(pattern.subarray(from, from + count), at + done);
    done += count;
    from = (from + count) % PATTERN_BYTES;
  }
}

export function patternBytes(offset: number, length: number, tag: number): Uint8Array {
  const bytes = new Uint8Array(length);
  fillPattern(bytes, 0, offset, length, tag);
  return bytes;
}

/** The same for writes that are compressed: of most clusters half is repeated, some do not become smaller at all. */
export function squeezableBytes(offset: number, length: number, tag: number): Uint8Array {
  const bytes = patternBytes(offset, length, tag);
  for (let at = 0; at < length; at += 512) {
    if (Math.floor((offset + at) / 4096 + tag) % 5 !== 0)
      bytes.fill(1 + (tag % 250), at + 200, Math.min(length, at + 512));
  }
  return bytes;
}
