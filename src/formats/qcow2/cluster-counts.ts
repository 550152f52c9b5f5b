/**
 * A number for each cluster of a file: sparse, and as narrow as its values allow. Pages come when something in them is
 * counted: one byte a cluster, two or four where a count needs them. So memory follows what is used, not how long the file is.
 */
import { BlockError } from '../../errors';
import { MIB } from '../../units';

/** Clusters of one page. */
const PAGE = 32768;
/** Bytes of all pages; ours. Enough for 32 TiB in use with 64 KiB clusters, 256 GiB with 512 bytes. */
const LIMIT = 512 * MIB;
/** The same for a small file: one entry of 8 bytes makes a page, and a stranger may scatter them. */
const SMALL_LIMIT = 64 * MIB;

/** Bytes that the counts of an image may take: an image that needs many has tables which fill at least an eighth of that. */
export function countsLimit(allocatedBytes: number): number {
  return Math.min(LIMIT, Math.max(SMALL_LIMIT, allocatedBytes / 4));
}

type Page = Uint8Array | Uint16Array | Uint32Array;

export class ClusterCounts {
  readonly #pages = new Map<number, Page>();
  #bytes = 0;

  /**
   * @param path for the message when the limit is reached
   * @param limit bytes of all pages
   */
  constructor(
    readonly path: string,
    private readonly limit = LIMIT,
  ) {}

  get(cluster: number): number {
    const page = this.#pages.get(Math.floor(cluster / PAGE));
    return page === undefined ? 0 : page[cluster % PAGE];
  }

  /** @returns the new count */
  add(cluster: number, times: number): number {
    const index = Math.floor(cluster / PAGE);
    const at = cluster % PAGE;
    let page = this.#pages.get(index) ?? this.#grow(index, undefined, new Uint8Array(PAGE));
    const count = page[at] + times;
    if (count > 0xff && page instanceof Uint8Array) page = this.#grow(index, page, new Uint16Array(PAGE));
    if (count > 0xffff && page instanceof Uint16Array) page = this.#grow(index, page, new Uint32Array(PAGE));
    page[at] = Math.min(count, 0xffffffff);
    return count;
  }

  /** Is any cluster of `[first, first + count)` counted? */
  anyIn(first: number, count: number): boolean {
    const end = first + count;
    for (let cluster = first; cluster < end; ) {
      const next = (Math.floor(cluster / PAGE) + 1) * PAGE;
      const page = this.#pages.get(Math.floor(cluster / PAGE));
      for (; page !== undefined && cluster < Math.min(next, end); cluster++) {
        if (page[cluster % PAGE] !== 0) return true;
      }
      cluster = next;
    }
    return false;
  }

  /** First clusters of the pages that exist, in order. */
  pages(): { first: number; count: number }[] {
    return [...this.#pages.keys()].sort((a, b) => a - b).map((index) => ({ first: index * PAGE, count: PAGE }));
  }

  /** Cluster after the last one that is counted; 0 when none is. */
  end(): number {
    for (const [index, page] of [...this.#pages].sort(([a], [b]) => b - a)) {
      for (let at = PAGE - 1; at >= 0; at--) if (page[at] !== 0) return index * PAGE + at + 1;
    }
    return 0;
  }

  #grow<T extends Page>(index: number, old: Page | undefined, page: T): T {
    this.#bytes += page.byteLength - (old?.byteLength ?? 0);
    if (this.#bytes > this.limit) {
      const limit = `the check is limited to ${this.limit / MIB} MiB of memory`;
      throw new BlockError('LIMIT_EXCEEDED', `Cannot check qcow2 image "${this.path}": too many clusters, ${limit}`, {
        path: this.path,
      });
    }
    if (old !== undefined) page.set(old);
    this.#pages.set(index, page);
    return page;
  }
}
