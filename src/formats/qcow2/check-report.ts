/** What one walk over a qcow2 image found, and the counting of references that all its parts share. */
import { BlockError, describeHostError } from '../../errors';
import type { Storage } from '../../storage/storage';
import { divCeil } from '../../units';
import type { CheckMessages } from '../check-messages';
import { ClusterCounts, countsLimit } from './cluster-counts';
import type { Qcow2Header } from './layout';
import { maxRefcount } from './refcount-codec';

export class CheckReport {
  /** References to each cluster of the file. */
  readonly counts: ClusterCounts;
  /** Those of them that come from L1 tables. */
  readonly tableRefs: ClusterCounts;
  readonly fileSize: number;
  /** Clusters of the file, the last one perhaps cut off. */
  readonly fileClusters: number;
  readonly maxCount: number;

  /** Entries of L1 and L2 tables, and references that are too many for the width of a count. */
  entryErrors = 0;
  snapshotErrors = 0;
  bitmapErrors = 0;
  /** Of the refcount table. */
  structureErrors = 0;
  /** Counts on disk that are lower than the references. */
  tooLow = 0;
  /** Some of them have no block where they could be set. */
  blockMissing = false;
  /** Counts on disk that are higher than the references. */
  leaks = 0;
  copiedErrors = 0;
  /** Tables that could not be read, counts that could not be had. */
  checkErrors = 0;
  /** The former alone: the host failed. */
  readErrors = 0;

  allocatedClusters = 0;
  fragmentedClusters = 0;
  compressedClusters = 0;
  /** The highest cluster that is in use, or counted on disk. */
  highestCluster = 0;

  constructor(
    readonly header: Qcow2Header,
    readonly storage: Storage,
    readonly messages: CheckMessages,
  ) {
    this.counts = this.newCounts();
    this.tableRefs = this.newCounts();
    this.fileSize = storage.size();
    this.fileClusters = divCeil(this.fileSize, header.clusterSize);
    this.maxCount = maxRefcount(header.refcountOrder);
  }

  /** A number for each cluster; the memory for it is bounded by what the file really has. */
  newCounts(): ClusterCounts {
    return new ClusterCounts(this.storage.path, countsLimit(this.storage.allocatedBytes()));
  }

  get corruptions(): number {
    return (
      this.entryErrors +
      this.snapshotErrors +
      this.bitmapErrors +
      this.structureErrors +
      this.tooLow +
      this.copiedErrors
    );
  }

  /**
   * Counts `times` references to each cluster that the bytes touch. A range that ends a cluster or more past the end of the
   * file is an error and counted nowhere: what it names does not exist.
   */
  addRange(offset: number, length: number, times = 1): boolean {
    if (length <= 0) return true;
    const { clusterSize } = this.header;
    if (offset + length - this.fileSize >= clusterSize) {
      this.messages.add(
        `ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset ${hexOf(offset)} size ${hexOf(length)}`,
      );
      return false;
    }
    const last = Math.floor((offset + length - 1) / clusterSize);
    for (let cluster = Math.floor(offset / clusterSize); cluster <= last; cluster++) {
      const count = this.counts.add(cluster, times);
      const excess = Math.min(times, count - this.maxCount);
      if (excess <= 0) continue;
      this.entryErrors += excess;
      this.messages.add(`ERROR: overflow cluster offset=${hexOf(cluster * clusterSize)}`);
    }
    return true;
  }

  /** References as a count on disk can say them. */
  wanted(cluster: number): number {
    return Math.min(this.counts.get(cluster), this.maxCount);
  }

  /** Is every cluster of the range used by one only? Otherwise it may be no table at all, and is not written to. */
  usedOnce(offset: number, length: number): boolean {
    const { clusterSize } = this.header;
    const last = Math.floor((offset + length - 1) / clusterSize);
    for (let cluster = Math.floor(offset / clusterSize); cluster <= last; cluster++) {
      if (this.counts.get(cluster) !== 1) return false;
    }
    return true;
  }

  /** Reads or, when the host cannot, says so and answers false: what the table names stays unknown. */
  readTable(what: string, offset: number, target: Uint8Array, length: number): boolean {
    try {
      this.storage.read(offset, target, 0, length);
      return true;
    } catch (error) {
      this.checkErrors++;
      this.readErrors++;
      const problem = error instanceof BlockError ? error.message : describeHostError(error);
      this.messages.add(`ERROR ${what} at ${hexOf(offset)} cannot be read: ${problem}`);
      return false;
    }
  }
}

/** C's `%#x`. */
export function hexOf(value: number): string {
  return value === 0 ? '0' : `0x${value.toString(16)}`;
}
