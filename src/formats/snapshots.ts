/** Internal snapshots as data, and what a format needs of the engine to change them. `SnapshotDriver` is in `driver.ts`. */
import type { TableSlice } from '../shared/table-cache';

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

/** What a format needs of the engine while it changes the list. */
export interface SnapshotEngine {
  /** Changed tables, counts first, are durable on return. */
  flush(): void;
  /** Brings a slice into the cache. @param attempt how many slices were asked for without getting on */
  load(slice: TableSlice, attempt: number): void;
}
