/**
 * Where the bytes of an image lie. A storage moves whole ranges or throws; it knows nothing of guests or formats.
 *
 * Everything is synchronous. Several threads use one storage at once: each worker attaches its own object to the same
 * file descriptor with `attachStorage(storage.describe())`.
 */

/** Named steps of metadata I/O. Fault injection and power-cut tests address them by these names. */
export type StorageEvent =
  | 'header-update'
  | 'l1-update'
  | 'l2-update'
  | 'l2-allocate'
  | 'refcount-update'
  | 'refcount-allocate'
  | 'snapshot-update'
  | 'cluster-grow'
  | 'cluster-free'
  | 'cow-write'
  | 'data-write'
  | 'flush-data'
  | 'flush-l2'
  | 'flush-header'
  | 'check-repair'
  | 'create';

/** What another thread needs to use the same storage; structured-cloneable. */
export type StorageDescriptor =
  | { kind: 'file'; fd: number; path: string; readOnly: boolean; isBlockDevice: boolean }
  | { kind: 'memory'; buffer: SharedArrayBuffer; path: string; readOnly: boolean };

/** A range of a host file, for whoever reads it by himself. Filled by `locate`, again and again: there is one for each thread. */
export interface HostPlace {
  fd: number;
  offset: number;
}

export interface Storage {
  /** The path for messages and for names relative to it. */
  readonly path: string;
  readonly readOnly: boolean;

  /**
   * Reads `length` bytes at host `offset` into `target` at `at`. Bytes past the end of the file read as zero.
   * @returns how many bytes came from inside the file
   */
  read(offset: number, target: Uint8Array, at: number, length: number): number;

  /** A read of this range follows: the host may fetch it meanwhile. A hint, which never fails. */
  prefetch(offset: number, length: number): void;

  /**
   * Where somebody else can read what `read` would: with pread(2), which may come out short.
   * @returns false: only `read` can
   */
  locate(offset: number, place: HostPlace): boolean;

  /** Writes all of it or throws; the file grows when the range ends past its end. */
  write(offset: number, source: Uint8Array, at: number, length: number, event: StorageEvent): void;

  /** Makes the range read as zero and gives its space back where the host can. Never changes the size. */
  punch(offset: number, length: number, event: StorageEvent): void;

  /** Reserves host blocks for the range; what is inside the file keeps its content, the rest reads zero. Grows the file. */
  allocate(offset: number, length: number, event: StorageEvent): void;

  /** Current length of the file in bytes (of a block device: its capacity). */
  size(): number;

  /** Sets the length. The caller sees to it that no other thread writes past the new end at this moment. */
  truncate(size: number, event: StorageEvent): void;

  /** fdatasync: everything written before is on stable storage when this returns. A failure is final (DESIGN, order and crash safety). */
  sync(event: StorageEvent): void;

  /** First byte at or after `offset` that holds data (SEEK_DATA); `size()` when there is none. Holes may be reported as data. */
  nextData(offset: number): number;

  /** First byte at or after `offset` that lies in a hole (SEEK_HOLE); `size()` when there is none. */
  nextHole(offset: number): number;

  /** Bytes the host really keeps for this file (st_blocks x 512). */
  allocatedBytes(): number;

  describe(): StorageDescriptor;
  close(): void;
}
