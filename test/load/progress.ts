/** How far the writers of a disk have come, in memory that survives the daemon. */

/** Numbers in shared memory, three for each writer, and one that says that the end is wanted. */
export class Progress {
  private readonly words: Int32Array;

  constructor(
    readonly buffer: SharedArrayBuffer,
    readonly writers: number,
  ) {
    this.words = new Int32Array(buffer);
  }

  static create(writers: number): Progress {
    return new Progress(new SharedArrayBuffer((3 * writers + 1) * 4), writers);
  }

  begin(writer: number, number: number): void {
    Atomics.store(this.words, 3 * writer, number);
  }
  complete(writer: number, number: number): void {
    Atomics.store(this.words, 3 * writer + 1, number);
  }
  begun(): number[] {
    return this.column(0);
  }
  completed(): number[] {
    return this.column(1);
  }
  synced(): number[] {
    return this.column(2);
  }
  /** A sync that began when `completed` were done has been acknowledged. */
  acknowledge(completed: readonly number[]): void {
    for (const [writer, number] of completed.entries()) {
      const at = 3 * writer + 2;
      for (let now = Atomics.load(this.words, at); now < number; ) {
        const was = Atomics.compareExchange(this.words, at, now, number);
        if (was === now) break;
        now = was;
      }
    }
  }
  private column(which: number): number[] {
    return Array.from({ length: this.writers }, (_, writer) => Atomics.load(this.words, 3 * writer + which));
  }

  /** From now on failures are what everybody expects. */
  announceEnd(): void {
    Atomics.store(this.words, 3 * this.writers, 1);
  }
  get ending(): boolean {
    return Atomics.load(this.words, 3 * this.writers) === 1;
  }
}
