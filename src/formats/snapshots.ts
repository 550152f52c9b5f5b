/** What a format with internal snapshots answers: which there are, how to read one, and how the list changes. */
import type { TableSlice } from '../shared/table-cache';
import type { FormatDriver, GuestOffset } from './driver';

/** An internal snapshot as plain data. */
export interface SnapshotInfo {
  /** Unique in the image by custom. */
  id: string;
  /** May be empty, and several may have the same. */
  name: string;
  /** Bytes; 0: it has none. */
  vmStateSize: number;
  /** When it was taken: seconds since the epoch, and nanoseconds. */
  dateSec: number;
  dateNsec: number;
  /** How long the guest had run, nanoseconds. */
  vmClockNsec: number;
  /** Instructions that the guest had executed, where the machine counted them. */
  icount?: number;
  /** Bytes of the disk as it was. */
  virtualSize: number;
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

/** What a format needs of the engine while it changes the list. */
export interface SnapshotEngine {
  /** Changed tables, counts first, are durable on return. */
  flush(): void;
  /** Brings a slice into the cache. @param attempt how many slices were asked for without getting on */
  load(slice: TableSlice, attempt: number): void;
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
