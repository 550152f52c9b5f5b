/** What a disk should read as, kept in pages: disks of any size, of which tests touch little. */
const PAGE = 4096;

export class DiskModel {
  private readonly pages = new Map<number, Uint8Array>();
  private readonly zeroed: { from: number; to: number }[] = [];

  /** @param below model of the backing file; zeroes without one, and past its end */
  constructor(
    private length: number,
    private readonly below?: DiskModel,
  ) {}

  get size(): number {
    return this.length;
  }

  write(offset: number, source: Uint8Array, at = 0, length = source.length): void {
    for (let done = 0; done < length; ) {
      const inPage = (offset + done) % PAGE;
      const count = Math.min(length - done, PAGE - inPage);
      this.page(offset + done - inPage).set(source.subarray(at + done, at + done + count), inPage);
      done += count;
    }
  }

  zero(offset: number, length: number): void {
    const to = offset + length;
    for (const [start, page] of this.pages) {
      if (start < to && offset < start + PAGE) page.fill(0, Math.max(0, offset - start), Math.min(PAGE, to - start));
    }
    this.zeroed.push({ from: offset, to });
  }

  /** The new part reads zero, whatever lies below. */
  resize(size: number): void {
    this.zero(this.length, size - this.length);
    this.length = size;
  }

  read(offset: number, length: number, bytes: Uint8Array = new Uint8Array(length)): Uint8Array {
    this.readInto(offset, bytes, 0, length);
    return bytes;
  }

  /** Starts of the pages that were ever written. */
  touched(): number[] {
    return [...this.pages.keys()];
  }

  private readInto(offset: number, target: Uint8Array, at: number, length: number): void {
    for (let done = 0; done < length; ) {
      const start = offset + done;
      const inPage = start % PAGE;
      const page = this.pages.get(start - inPage);
      if (page !== undefined) {
        const count = Math.min(length - done, PAGE - inPage);
        target.set(page.subarray(inPage, inPage + count), at + done);
        done += count;
      } else {
        let count = PAGE - inPage;
        while (count < length - done && !this.pages.has(start + count)) count += PAGE;
        count = Math.min(count, length - done);
        this.untouched(start, target, at + done, count);
        done += count;
      }
    }
  }

  private page(start: number): Uint8Array {
    let page = this.pages.get(start);
    if (page === undefined) {
      page = new Uint8Array(PAGE);
      this.untouched(start, page, 0, PAGE);
      this.pages.set(start, page);
    }
    return page;
  }

  private untouched(offset: number, target: Uint8Array, at: number, length: number): void {
    const below = this.below;
    const inside = below === undefined ? 0 : Math.max(0, Math.min(length, below.size - offset));
    if (below !== undefined && inside > 0) below.readInto(offset, target, at, inside);
    target.fill(0, at + inside, at + length);
    for (const { from, to } of this.zeroed) {
      if (from < offset + length && offset < to) {
        target.fill(0, at + Math.max(0, from - offset), at + Math.min(length, to - offset));
      }
    }
  }
}

/** Memory that is used again: new memory for each of thousands of disks costs more than what is done with them. */
export class Scratch {
  private bytes = new Uint8Array(0);

  /** @returns bytes until the next call, of any content: all of them are to be written */
  take(length: number): Uint8Array {
    if (this.bytes.length < length) this.bytes = new Uint8Array(length);
    return this.bytes.subarray(0, length);
  }

  /** For a read. @returns bytes that are not zero, nor left from before: what the read leaves alone must not look right by chance */
  takeUnread(length: number): Uint8Array {
    return this.take(length).fill(0xa5);
  }
}

/** Offset of the first byte in which the two differ; -1 when they are equal. */
export function firstDifference(a: Uint8Array, b: Uint8Array): number {
  if (Buffer.compare(a, b) === 0) return -1;
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) if (a[i] !== b[i]) return i;
  return length;
}

/** What a request that failed, or was not flushed yet, may have left: each byte by itself, or not at all. */
export interface Perhaps {
  offset: number;
  bytes: Uint8Array;
}

/** Offset of the first byte that is neither as expected nor as one of `perhaps` left it; -1: none. `expected` is changed. */
export function firstImpossible(found: Uint8Array, expected: Uint8Array, perhaps: readonly Perhaps[]): number {
  for (const { offset, bytes } of perhaps) {
    const end = Math.min(found.length, offset + bytes.length);
    for (let from = offset; from < end; from += PAGE) {
      const to = Math.min(end, from + PAGE);
      if (Buffer.compare(found.subarray(from, to), expected.subarray(from, to)) === 0) continue;
      for (let at = from; at < to; at++) if (found[at] === bytes[at - offset]) expected[at] = found[at];
    }
  }
  return firstDifference(found, expected);
}
