/**
 * Bounded lists of runs of clusters in the image file, in shared memory; the caller holds the image's lock exclusively.
 *
 * `PlaceList` keeps runs sorted by offset and merges neighbours: the free places that an allocation may take.
 * `RunQueue` keeps them in the order of arrival with a number each: dropped places on their way to being free.
 */

/** A sorted list of free runs. A list that is full forgets what it is given: those clusters leak until the next check. */
export class PlaceList {
  /** Pairs: offset, length. */
  private readonly runs: Float64Array;

  /** @param countIndex word that holds the number of runs */
  constructor(
    private readonly words: Int32Array,
    private readonly countIndex: number,
    runs: Float64Array,
  ) {
    this.runs = runs;
  }

  get count(): number {
    return this.words[this.countIndex];
  }

  /** Bytes in all runs. */
  total(): number {
    let total = 0;
    for (let i = 0; i < this.count; i++) total += this.runs[i * 2 + 1];
    return total;
  }

  /**
   * Adds a run; merges it with its neighbours.
   * @returns false when the run is forgotten: the list was full, or has part of it already, because a corrupt image named one
   * place twice (handing it out twice would spread the damage)
   */
  add(offset: number, length: number): boolean {
    const { runs } = this;
    const count = this.count;
    const at = this.firstAfter(offset);
    if (at > 0 && runs[at * 2 - 2] + runs[at * 2 - 1] > offset) return false;
    if (at < count && offset + length > runs[at * 2]) return false;
    const joinsBefore = at > 0 && runs[at * 2 - 2] + runs[at * 2 - 1] === offset;
    const joinsAfter = at < count && offset + length === runs[at * 2];
    if (joinsBefore && joinsAfter) {
      runs[at * 2 - 1] += length + runs[at * 2 + 1];
      this.remove(at);
    } else if (joinsBefore) {
      runs[at * 2 - 1] += length;
    } else if (joinsAfter) {
      runs[at * 2] = offset;
      runs[at * 2 + 1] += length;
    } else {
      if (count * 2 === runs.length) return false;
      runs.copyWithin(at * 2 + 2, at * 2, count * 2);
      runs[at * 2] = offset;
      runs[at * 2 + 1] = length;
      this.words[this.countIndex] = count + 1;
    }
    return true;
  }

  /**
   * Takes up to `length` bytes from the first run that has `minimum`.
   * @returns offset and length taken, or undefined when there is no such run
   */
  take(length: number, minimum: number): { offset: number; length: number } | undefined {
    const { runs } = this;
    for (let i = 0; i < this.count; i++) {
      const available = runs[i * 2 + 1];
      if (available < minimum) continue;
      const offset = runs[i * 2];
      const taken = Math.min(length, available);
      if (taken === available) this.remove(i);
      else {
        runs[i * 2] += taken;
        runs[i * 2 + 1] -= taken;
      }
      return { offset, length: taken };
    }
    return undefined;
  }

  /**
   * What the list says about `[offset, offset + length)`: a listed part at its start is taken; else nothing is.
   * @returns bytes from `offset` on that are all of one sort, and whether they were taken from the list
   */
  takeAt(offset: number, length: number): { length: number; listed: boolean } {
    const { runs } = this;
    const after = this.firstAfter(offset);
    const at = after - 1;
    const end = at < 0 ? 0 : runs[at * 2] + runs[at * 2 + 1];
    if (end <= offset) {
      const next = after < this.count ? runs[after * 2] : Number.POSITIVE_INFINITY;
      return { length: Math.min(length, next - offset), listed: false };
    }
    const taken = Math.min(length, end - offset);
    const start = runs[at * 2];
    this.remove(at);
    if (start < offset) this.add(start, offset - start);
    // The list may be full now: the rest is forgotten, which the caller's search finds again.
    if (offset + taken < end) this.add(offset + taken, end - offset - taken);
    return { length: taken, listed: true };
  }

  /** Takes the run that ends at `end`, if there is one. @returns where the run began, else `end` */
  takeEndingAt(end: number): number {
    const last = this.count - 1;
    if (last < 0 || this.runs[last * 2] + this.runs[last * 2 + 1] !== end) return end;
    const offset = this.runs[last * 2];
    this.remove(last);
    return offset;
  }

  private remove(at: number): void {
    this.runs.copyWithin(at * 2, at * 2 + 2, this.count * 2);
    this.words[this.countIndex]--;
  }

  /** Index of the first run that begins after `offset`. */
  private firstAfter(offset: number): number {
    let low = 0;
    let high = this.count;
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if (this.runs[middle * 2] <= offset) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

export interface NumberedRun {
  offset: number;
  length: number;
  number: number;
}

/** Runs in order of arrival. */
export class RunQueue {
  /** @param runs triples: offset, length, number */
  constructor(
    private readonly words: Int32Array,
    private readonly countIndex: number,
    private readonly runs: Float64Array,
  ) {}

  get count(): number {
    return this.words[this.countIndex];
  }

  get capacity(): number {
    return Math.floor(this.runs.length / 3);
  }

  /** Adds a run, merged with the last one where it continues it. @returns false when there is no room */
  add(offset: number, length: number, number: number): boolean {
    const { runs } = this;
    const count = this.count;
    const last = (count - 1) * 3;
    if (count > 0 && runs[last] + runs[last + 1] === offset && runs[last + 2] === number) {
      runs[last + 1] += length;
      return true;
    }
    if (count === this.capacity) return false;
    runs[count * 3] = offset;
    runs[count * 3 + 1] = length;
    runs[count * 3 + 2] = number;
    this.words[this.countIndex] = count + 1;
    return true;
  }

  /** Empties the queue into an array. */
  takeAll(): NumberedRun[] {
    const taken: NumberedRun[] = [];
    for (let i = 0; i < this.count; i++) {
      taken.push({ offset: this.runs[i * 3], length: this.runs[i * 3 + 1], number: this.runs[i * 3 + 2] });
    }
    this.words[this.countIndex] = 0;
    return taken;
  }
}
