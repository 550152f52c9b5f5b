/**
 * What a format must answer: *where is it* and *make room*. A driver does no guest I/O, knows no backing file's content
 * and opens no other file. The engine (`cluster/`) loops, reads, copies and writes.
 *
 * Who calls what under which lock is said at each method; the lock is the image's read-write lock over the mapping in
 * memory (`ImageState.lock`). No host I/O happens under it: a method that finds a table missing from the cache answers
 * `miss`, the engine lets go, loads the table and asks again.
 */
import { BlockError } from '../errors';
import type { ImageState } from '../shared/image-state';
import type { TableSlice } from '../shared/table-cache';
import type { Storage } from '../storage/storage';
import type { SnapshotEngine, SnapshotInfo } from './snapshots';

/** The tables of an image contradict each other or the file. Met on the way of a change, the image takes no more changes. */
export class TableError extends BlockError {
  constructor(message: string, path: string, offset?: number) {
    super('CORRUPT_IMAGE', message, offset === undefined ? { path } : { path, offset });
  }
}

/** Byte position on the disk as the guest sees it. */
export type GuestOffset = number;
/** Byte position in the image file. */
export type HostOffset = number;

/** Status of one run of guest bytes in this layer. `length` > 0. */
export type Mapping =
  /**
   * At `offset` of the image file. `writable`: may be overwritten in place (its refcount is one). `hole`: the host has nothing
   * there, so it reads zero; said in answers of `Layer.status` only.
   */
  | { kind: 'data'; length: number; offset: HostOffset; writable: boolean; hole?: true }
  /** Reads zero and hides the backing file. `offset`: has a place all the same. */
  | { kind: 'zero'; length: number; offset?: HostOffset }
  /** Decided by the backing file; zeroes if there is none or it is shorter. `offset`: of a subcluster whose cluster has a place. */
  | { kind: 'unallocated'; length: number; offset?: HostOffset }
  /** One cluster, or part of it, that only the driver can read: `readCompressed`. */
  | { kind: 'compressed'; length: number; offset: HostOffset; bytes: number }
  /** The table that knows is not in the cache: load `slice` outside the lock and ask again. */
  | { kind: 'miss'; slice: TableSlice };

/** Places in the image file that an allocating write fills before they are published. */
export interface Reservation {
  offset: HostOffset;
  /** Bytes, a whole number of granules; may be less than asked for. */
  length: number;
  /** The places read as zero now: beyond the end of the file since it was opened, or punched since. */
  fresh: boolean;
  /** The clusters have these places already (the rest of a cluster with subclusters, a data file): nothing to give back. */
  kept?: true;
}

/** What guest clusters point to from now on. */
export type Target =
  | { kind: 'data'; offset: HostOffset }
  | { kind: 'zero' }
  | { kind: 'unallocated' }
  /** `bytes` of a stream, for one cluster. */
  | { kind: 'compressed'; offset: HostOffset; bytes: number };

export interface DriverCapabilities {
  /** Clusters with tables: reserve, publish and flush exist. Raw has none of them. */
  clusters: boolean;
  /** Can have a backing file. */
  backing: boolean;
}

export interface FormatDriver {
  /** `qed`, `raw`: the word of qemu-img. */
  readonly format: string;
  readonly capabilities: DriverCapabilities;
  /** Bytes; 0 for formats without clusters. */
  readonly clusterSize: number;
  /** Bytes: the smallest unit that has a status of its own; a part of it that is written needs the rest copied. The cluster, or a subcluster. */
  readonly granule: number;
  /** The image file: header and tables. */
  readonly storage: Storage;
  /** Where guest data lies: the image file itself, or an external data file. */
  readonly data: Storage;
  readonly state: ImageState;

  /**
   * Where the guest data at `guest` is, for this layer only. Called with the lock held, shared or exclusive.
   * `guest + maxLength` is inside the disk. Runs of one status are coalesced; a run ends at the latest where its table slice
   * ends: of L2, or of L1 where there are no L2 tables.
   * Throws CORRUPT_IMAGE for an entry that points outside the file or is unaligned.
   */
  map(guest: GuestOffset, maxLength: number): Mapping;

  /**
   * Sees to it that `guest` has a table which can take entries. Called *without* the lock: may allocate a table and do I/O
   * for it. Afterwards `publish` at `guest` answers `miss` at the most.
   * @returns the slice to load first, after which it is called again; undefined when the table is there
   */
  prepareTables(guest: GuestOffset): TableSlice | undefined;

  /**
   * Takes places for up to `length` bytes at `guest` (whole granules, inside one table slice). Lock held exclusively; memory only.
   * @returns the reservation; or the slice to load first; or `prepare`: call `prepareTables` again, without the lock
   */
  reserve(guest: GuestOffset, length: number): Reservation | TableSlice | 'prepare';

  /**
   * Bytes that a write at `guest` must replace as a whole, `granule` or `clusterSize`: a cluster has one place for all of its
   * subclusters. After `prepareTables`, lock held exclusively. Absent: always the granule.
   */
  writeUnit?(guest: GuestOffset): number;

  /**
   * Called before guest data in `[offset, offset + length)` of the image file is changed in place. Lock held. Absent: nothing
   * is known of tables. Throws TableError where a table, or the header, lies there.
   */
  refuseTables?(offset: HostOffset, length: number): void;

  /**
   * Says in the image, durably, that it is not to be written, and lets `ImageState.corrupt` say so at once. No lock is held.
   * Absent: the format cannot say it.
   */
  markCorrupt?(): void;

  /** Gives places of a reservation back that were never published. Lock held exclusively; memory only. */
  release(reservation: Reservation): void;

  /**
   * A dropped place that no table on disk names and no request can hold any more: to be handed out again. Called without
   * the lock, by the flush. Throws when it cannot be done now; the next flush tries again.
   */
  giveBack(offset: HostOffset, length: number): void;

  /** Reads the whole cluster of a compressed mapping into `cluster` (clusterSize bytes). Absent: the format has none. */
  readCompressed?(mapping: Extract<Mapping, { kind: 'compressed' }>, cluster: Uint8Array): void;

  /** Writes whole clusters compressed. Absent: the format, or this image, cannot. */
  readonly compressor?: Compressor;

  /** Called without the lock before a reserved place is written: the host file reaches at least to `end` afterwards. */
  growHostFile(end: HostOffset): void;

  /**
   * Lets the clusters in `[guest, guest + length)` (whole granules, inside one table slice) point to `target` and remembers
   * the places that they leave as dropped (DESIGN section 5, step 5). Lock held exclusively; memory only.
   * @returns the slice to load first when it is not in the cache (nothing was changed), else undefined
   */
  publish(guest: GuestOffset, length: number, target: Target): TableSlice | undefined;

  /** The image is about to be closed and nobody uses it: gives back what it took at the end of the file and does not need. */
  cutTail(): void;

  /** The bit for "not cleanly closed" must be on disk before tables change: true for stand-alone QED images. */
  readonly usesDirtyBit: boolean;

  /** Writes the header (the caller syncs it). The meta mutex is held. */
  writeHeader(fields: { dirty: boolean; virtualSize: number }): void;

  /**
   * Sees to it that the tables can describe a disk of `size` bytes. Called without the lock, with the resize mutex held,
   * before the size changes. @returns what to do first, after which it is called again: load the slice, or flush
   */
  growTables?(size: number): TableSlice | 'flush' | undefined;

  /** Entries can say "reads zero" where a backing file would show through. Without it zeroes are written. */
  readonly hasZeroClusters: boolean;

  /** Data that becomes zero stays where it is and is zeroed there: the data file is read by others too. */
  readonly zeroesInPlace: boolean;

  /** Guest bytes that one table slice maps; `publish` takes ranges inside one such span. */
  readonly sliceSpan: number;

  /** Largest virtual size that the tables of this image can describe, bytes. */
  readonly maxVirtualSize: number;

  /** Are there places of data that the host has nothing for, because they were taken in advance? Absent: never. */
  hasHostHoles?(): boolean;

  /** Internal snapshots; absent where the format, or this image, cannot have any. */
  readonly snapshots?: SnapshotDriver;
}

/** How one cluster becomes a stream with a place of its own; `publish` then lets the cluster be that. */
export interface Compressor {
  /** The stream, to be used before the next call; undefined when it would not be smaller than the cluster. Called without the lock. */
  compress(cluster: Uint8Array): Uint8Array | undefined;

  /**
   * Takes a place for `bytes` of a stream, perhaps in a host cluster that holds others. After `prepareTables`, as `reserve`:
   * lock held exclusively, memory only. `release` gives it back. @returns exactly `bytes`
   */
  reserve(bytes: number): Reservation | TableSlice | 'prepare';
}

/** One snapshot, to read in this thread. */
export interface OpenedSnapshot {
  readonly info: SnapshotInfo;
  readonly driver: FormatDriver;
  /** Where the VM state begins in the driver's tables. */
  readonly vmStateOffset: GuestOffset;
  /** False when it was deleted since. Ask it inside a request of this thread, so that the answer stays true until its end. */
  exists(): boolean;
}

/**
 * `list` and `open` are called inside a request of this thread, so that nothing which they read is freed meanwhile. The
 * others are called with the resize mutex held, no lock, and, but for `rename`, no request of any thread in flight: what is
 * in memory is in the file then. After a failure the image is as it was before, at the most with leaks.
 */
export interface SnapshotDriver {
  list(): SnapshotInfo[];
  /** @returns undefined when there is none with this id */
  open(id: string): OpenedSnapshot | undefined;
  take(name: string, engine: SnapshotEngine): SnapshotInfo;
  remove(id: string, engine: SnapshotEngine): void;
  rename(id: string, name: string, engine: SnapshotEngine): void;
  revert(id: string, engine: SnapshotEngine): void;
}
