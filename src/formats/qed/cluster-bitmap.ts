/**
 * One bit for each cluster of a file, up to 2^31 of them. The bit operators below see one byte at a time, never an offset.
 */
export class ClusterBitmap {
  /** Number of clusters. */
  readonly length: number;
  readonly #bytes: Uint8Array;

  constructor(length: number) {
    this.length = length;
    this.#bytes = new Uint8Array(Math.ceil(length / 8));
  }

  has(cluster: number): boolean {
    return ((this.#bytes[Math.floor(cluster / 8)] ?? 0) & (1 << (cluster % 8))) !== 0;
  }

  /** @returns false when the bit was set before */
  add(cluster: number): boolean {
    const index = Math.floor(cluster / 8);
    const before = this.#bytes[index] ?? 0;
    const bit = 1 << (cluster % 8);
    this.#bytes[index] = before | bit;
    return (before & bit) === 0;
  }

  /** Cluster after the last one whose bit is set; 0 when none is. */
  end(): number {
    let index = this.#bytes.length - 1;
    while (index >= 0 && this.#bytes[index] === 0) index--;
    if (index < 0) return 0;
    let cluster = index * 8 + 7;
    while (!this.has(cluster)) cluster--;
    return cluster + 1;
  }

  /** Runs of clusters whose bit is not set, in order. Whole bytes are skipped at once: files are large and runs are long. */
  *gaps(): Generator<{ first: number; count: number }> {
    let cluster = 0;
    while (cluster < this.length) {
      const first = this.#next(cluster, false);
      if (first >= this.length) return;
      cluster = this.#next(first, true);
      yield { first, count: cluster - first };
    }
  }

  /** First cluster at or after `cluster` whose bit is `set`; `length` when there is none. */
  #next(cluster: number, set: boolean): number {
    const skip = set ? 0x00 : 0xff;
    let at = cluster;
    while (at < this.length) {
      if (at % 8 === 0 && this.#bytes[at / 8] === skip) at += 8;
      else if (this.has(at) === set) return at;
      else at++;
    }
    return this.length;
  }
}
