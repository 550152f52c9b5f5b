/** The counts as they are on disk: refcount table, blocks, and the comparison with the references that a walk has counted. */
import { type CheckReport, hexOf } from './check-report';
import { getCount, refcountsPerBlock } from './refcount-codec';

const HIGH = 2 ** 32;
/** Offsets of files are signed. */
const HOST_LIMIT = 2 ** 63;
/** Bits 0-8 of a table entry are reserved: below this. */
const RESERVED_STEP = 0x200;
/** Bytes of blocks that are kept for single look-ups. */
const CACHE_BYTES = 4 * 1024 * 1024;

/** A count could not be had: its block is at no possible place. */
export const NO_COUNT = -1;

export class RefcountStructure {
  /** Counts of one block. */
  readonly perBlock: number;
  /** Place of each block as the table says it, reserved bits left out; 0: none. */
  readonly blocks: Float64Array;
  /** Blocks that the walk counted as references. */
  readonly counted: number[] = [];
  readonly #report: CheckReport;
  readonly #cache = new Map<number, Buffer>();
  /** Entries that name a cluster which something else has. */
  readonly #repeated = new Set<number>();

  constructor(report: CheckReport) {
    this.#report = report;
    const { clusterSize, refcountOrder, refcountTableClusters } = report.header;
    this.perBlock = refcountsPerBlock(clusterSize, refcountOrder);
    this.blocks = new Float64Array((refcountTableClusters * clusterSize) / 8);
  }

  /** Counts table and blocks as references; what is wrong with them calls for new ones. */
  check(): void {
    const report = this.#report;
    const { clusterSize, refcountTableOffset } = report.header;
    const wrong = (message: string) => {
      report.structureErrors++;
      report.messages.add(`ERROR ${message}`);
    };
    const length = this.blocks.length * 8;
    if (length === 0) wrong('refcount table has 0 clusters');
    if (!report.addRange(refcountTableOffset, length)) report.structureErrors++;
    if (refcountTableOffset % clusterSize !== 0) {
      wrong('refcount table is not cluster aligned');
      return;
    }
    const table = Buffer.alloc(length);
    if (!report.readTable('refcount table', refcountTableOffset, table, length)) return;
    for (let index = 0; index < this.blocks.length; index++) {
      const low = table.readUInt32BE(index * 8 + 4);
      // Here the offset has 64 bits, not 56: inexact above 2^53, where it is past the end of every file.
      const reserved = low % RESERVED_STEP;
      const offset = table.readUInt32BE(index * 8) * HIGH + (low - reserved);
      this.blocks[index] = offset;
      if (reserved !== 0) wrong(`refcount table entry ${index} has reserved bits set`);
      else if (offset === 0) continue;
      else if (offset % clusterSize !== 0) {
        wrong(`refcount block ${index} is not cluster aligned; refcount table entry corrupted`);
      } else if (offset >= report.fileClusters * clusterSize) wrong(`refcount block ${index} is outside image`);
      else {
        const references = report.counts.add(offset / clusterSize, 1);
        this.counted.push(offset / clusterSize);
        if (references === 1) continue;
        this.#repeated.add(index);
        wrong(`refcount block ${index} refcount=${references}`);
      }
    }
  }

  /** The count of one cluster on disk, or NO_COUNT. */
  countOf(cluster: number): number {
    const index = Math.floor(cluster / this.perBlock);
    const offset = this.blocks[index] ?? 0;
    if (offset === 0) return 0;
    if (!this.#possible(offset)) return NO_COUNT;
    let block = this.#cache.get(index);
    if (block === undefined) {
      block = this.readBlock(index);
      if (block === undefined) return NO_COUNT;
      const { clusterSize } = this.#report.header;
      // The oldest goes first; look-ups follow the order of the disk, mostly.
      if (this.#cache.size * clusterSize >= CACHE_BYTES) this.#cache.delete(this.#cache.keys().next().value ?? index);
      this.#cache.set(index, block);
    }
    return getCount(block, 0, cluster % this.perBlock, this.#report.header.refcountOrder);
  }

  /** A block of counts; undefined when it is at no possible place or cannot be read. */
  readBlock(index: number): Buffer | undefined {
    const { clusterSize } = this.#report.header;
    const block = Buffer.alloc(clusterSize);
    if (this.blocks[index] >= this.#report.fileSize) return block;
    return this.#report.readTable('refcount block', this.blocks[index], block, clusterSize) ? block : undefined;
  }

  /** Can block `index` be read and written where it is? */
  usable(index: number): boolean {
    const offset = this.blocks[index] ?? 0;
    return (
      offset !== 0 && this.#possible(offset) && offset < this.#report.fileClusters * this.#report.header.clusterSize
    );
  }

  /** Compares all counts of the file with the references, and counts and tells the differences. */
  compare(): void {
    const report = this.#report;
    const clusters = Math.max(report.fileClusters, report.counts.end());
    const pages = report.counts.pages();
    let page = 0;
    for (let index = 0; index * this.perBlock < clusters; index++) {
      if (index >= this.blocks.length) {
        // Behind the table only what is in use counts: a file may be mostly hole.
        while (page < pages.length && pages[page].first + pages[page].count <= index * this.perBlock) page++;
        if (page === pages.length) return;
        index = Math.max(index, Math.floor(pages[page].first / this.perBlock));
      }
      const first = index * this.perBlock;
      const end = Math.min(first + this.perBlock, clusters);
      const offset = this.blocks[index] ?? 0;
      if (this.#saysNothing(index) && !report.counts.anyIn(first, end - first)) {
        // Long stretches of nothing, without a look at each cluster.
        continue;
      }
      if (offset !== 0 && !this.#possible(offset)) this.#unknown(first, end);
      else this.#compareBlock(index, first, end);
    }
  }

  /** No block, one in a hole of the host file, or one that belongs to other clusters: that was told, and a table may name it a million times. */
  #saysNothing(index: number): boolean {
    const offset = this.blocks[index] ?? 0;
    if (offset === 0 || this.#repeated.has(index)) return true;
    if (!this.usable(index)) return false;
    const { storage, header } = this.#report;
    return storage.nextData(offset) >= offset + header.clusterSize;
  }

  #compareBlock(index: number, first: number, end: number): void {
    const report = this.#report;
    const order = report.header.refcountOrder;
    const block = this.blocks[index] ? this.readBlock(index) : undefined;
    const missing = block === undefined || !this.usable(index);
    if (block === undefined && this.blocks[index]) return;
    for (let cluster = first; cluster < end; cluster++) {
      const onDisk = block === undefined ? 0 : getCount(block, 0, cluster - first, order);
      const wanted = report.wanted(cluster);
      if (onDisk !== 0 || wanted !== 0) report.highestCluster = cluster;
      if (onDisk === wanted) continue;
      if (onDisk < wanted) {
        report.tooLow++;
        report.blockMissing ||= missing;
      } else report.leaks++;
      report.messages.add(
        `${onDisk < wanted ? 'ERROR' : 'Leaked'} cluster ${cluster} refcount=${onDisk} reference=${wanted}`,
      );
    }
  }

  #unknown(first: number, end: number): void {
    const report = this.#report;
    for (let cluster = first; cluster < end; cluster++) {
      report.checkErrors++;
      report.messages.add(`Can't get refcount for cluster ${cluster}: Input/output error`);
    }
    // It is the place of the block that is wrong, not the host.
    report.blockMissing = true;
    report.messages.add(
      `ERROR refcount block of clusters ${first} to ${end - 1} cannot be at ${hexOf(this.blocks[Math.floor(first / this.perBlock)])}`,
    );
  }

  /** Aligned, and a number that a host can read at: past the end of the file are zeroes. */
  #possible(offset: number): boolean {
    return offset % this.#report.header.clusterSize === 0 && offset < HOST_LIMIT;
  }
}
