/**
 * The public disk: one opened image, filter or (later) snapshot in the graph. Everything that shows or changes guest data
 * (virtual files, jobs, the command line) goes through this interface and sees no format.
 */

import type { HostPlace } from '../storage/storage';

/** Result of a block-status query, in the words of `qemu-img map --output=json`. */
export interface BlockStatus {
  /** Bytes from the queried offset that share this status; > 0. */
  length: number;
  /** Layer that decides: 0 is this node, 1 its backing file, ... */
  depth: number;
  /** Some layer decides; false where nothing in the chain allocates the range. */
  present: boolean;
  zero: boolean;
  data: boolean;
  /** Host offset in the file of the deciding layer, where data lies there as such. */
  offset?: number;
  compressed?: boolean;
}

export interface BlockNodeStatistics {
  readBytes: number;
  readOperations: number;
  writeBytes: number;
  writeOperations: number;
  flushOperations: number;
  unmapBytes: number;
  unmapOperations: number;
  failedReadOperations: number;
  failedWriteOperations: number;
  failedFlushOperations: number;
  /** Byte after the highest one written. */
  writeHighestOffset: number;
}

export interface WriteOptions {
  /**
   * Whole clusters are stored compressed where that makes them smaller; an overwritten one becomes a plain one again. The
   * range begins at a cluster and ends at one, or at the end of the disk. Refused with UNSUPPORTED_FEATURE where it cannot be.
   */
  compressed?: boolean;
}

export interface BlockNode {
  /** `qed`, `raw` */
  readonly format: string;
  /** Path of the image as it was opened. */
  readonly path: string;
  readonly readOnly: boolean;
  /** Bytes; preferred I/O size (`st_blksize`). 0 when the format has no clusters. */
  readonly clusterSize: number;
  readonly backing: BlockNode | undefined;

  /** Virtual size in bytes, now. */
  size(): number;

  /** Reads all of the range or throws: OUT_OF_BOUNDS past the end. Never short. */
  read(offset: number, target: Uint8Array, at: number, length: number): void;

  /** A read of this range follows: the host may fetch what it needs meanwhile, of all layers. Changes nothing; what is past the end is left out. */
  prefetch(offset: number, length: number): void;

  /**
   * For whoever makes several reads at once by himself: runs `body`, in which `locate` may be called. Until it ends what was located stays there.
   * It does nothing else with this node meanwhile, and does not wait for what others do.
   */
  holding(body: () => void): void;

  /**
   * Where the range lies in a file of the host, if it does so as such and in one piece, and it takes no reading to know.
   * pread(2) may find less than `length` there: then `read` knows what follows.
   * @returns false: only `read` can, or can tell what is wrong
   */
  locate(offset: number, length: number, place: HostPlace): boolean;

  /** Reads that were made where `locate` said. */
  countReads(operations: number, bytes: number): void;

  /** Writes all of the range or throws. After success any reader sees it; it is on stable storage after the next `flush`. */
  write(offset: number, source: Uint8Array, at: number, length: number, options?: WriteOptions): void;

  /** The range reads as zero afterwards; whole clusters are freed, not filled. */
  writeZeroes(offset: number, length: number): void;

  /** Sees to it that later writes to the range need no new space. Content stays as it reads. */
  allocate(offset: number, length: number): void;

  /** Everything written before is on stable storage when this returns. */
  flush(): void;

  /** Grows the disk; the new part reads zero. Refuses to shrink. */
  resize(size: number): void;

  /** Status of the range that begins at `offset`, over the whole chain. `0 < result.length <= length`. */
  status(offset: number, length: number): BlockStatus;

  /** As `status`, of this layer alone: depth is always 0, `present` false means that the backing file decides. */
  layerStatus(offset: number, length: number): BlockStatus;

  /** Host bytes that the image file really takes. */
  allocatedBytes(): number;

  statistics(): BlockNodeStatistics;
}
