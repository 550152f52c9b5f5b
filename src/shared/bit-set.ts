/** Numbers from 0 on in shared memory, one bit each: to find a few among thousands without looking at each. */

/** Bytes for numbers below `count`. */
export function bitSetBytes(count: number): number {
  return Math.ceil(count / 32) * 4;
}

export class BitSet {
  private readonly words: Int32Array;

  constructor(buffer: SharedArrayBuffer, byteOffset: number, count: number) {
    this.words = new Int32Array(buffer, byteOffset, bitSetBytes(count) / 4);
  }

  add(index: number): void {
    Atomics.or(this.words, index >>> 5, 1 << (index & 31));
  }

  remove(index: number): void {
    Atomics.and(this.words, index >>> 5, ~(1 << (index & 31)));
  }

  /** The smallest number in the set that is at least `from`; -1: there is none. */
  next(from: number): number {
    const { words } = this;
    let word = from >>> 5;
    if (word >= words.length) return -1;
    let bits = Atomics.load(words, word) & (-1 << (from & 31));
    while (bits === 0) {
      if (++word >= words.length) return -1;
      bits = Atomics.load(words, word);
    }
    return word * 32 + 31 - Math.clz32(bits & -bits);
  }
}
