/**
 * One image file of a chain, as the block layer uses it: `ClusterLayer` for formats with tables, `FlatLayer` for raw.
 * Ranges are inside the disk; the block layer has checked that. Every method may be called from any thread.
 */
import type { Mapping } from '../formats/driver';
import type { ImageState } from '../shared/image-state';
import type { HostPlace } from '../storage/storage';

/** What lies below a layer: its backing file. */
export interface Below {
  size(): number;
  /** Reads `length` bytes at `guest`; zeroes past the end. */
  readBelow(guest: number, target: Uint8Array, at: number, length: number): void;
  /** As `BlockNode.prefetch`. */
  prefetch(guest: number, length: number): void;
  /** As `BlockNode.locate`; false where somebody may change this layer. */
  locateBelow(guest: number, length: number, place: HostPlace): boolean;
}

export type LayerStatus = Exclude<Mapping, { kind: 'miss' }>;

export interface Layer {
  readonly state: ImageState;
  readonly readOnly: boolean;
  /** Bytes of the disk, now. */
  size(): number;
  read(guest: number, target: Uint8Array, at: number, length: number): void;
  /** The host may fetch what a read of this range needs, here and below. */
  prefetch(guest: number, length: number): void;
  /** As `BlockNode.holding`. */
  holding(body: () => void): void;
  /** As `BlockNode.locate`. */
  locate(guest: number, length: number, place: HostPlace): boolean;
  write(guest: number, source: Uint8Array, at: number, length: number): void;
  /** As `write`, of whole clusters, the last one perhaps cut by the end of the disk; those that become smaller are stored so. */
  writeCompressed(guest: number, source: Uint8Array, at: number, length: number): void;
  writeZeroes(guest: number, length: number): void;
  allocate(guest: number, length: number): void;
  flush(): void;
  /** Grows the disk to `size` bytes. */
  resize(size: number): void;
  /** Status of the run at `guest` in this layer alone; 0 < length <= maxLength. */
  status(guest: number, maxLength: number): LayerStatus;
  /** Work that waits for its time: called every half second by the flusher. */
  maintain(nowMs: number): void;
  /** Last flush, dirty bit off, file cut to its end. No other thread uses the image any more. */
  finish(): void;
}

/** A change is flushed at the latest after this time, milliseconds. */
export const FLUSH_DELAY_MS = 5000;
/** The dirty bit goes off this long after the last allocating write, milliseconds. */
export const DIRTY_BIT_DELAY_MS = 5000;
