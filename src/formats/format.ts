/**
 * One format: a folder in `formats/` and one line in `registry.ts`. All files named here are opened by the caller; a
 * format opens nothing itself.
 */
import type { ImageState } from '../shared/image-state';
import type { TableCache } from '../shared/table-cache';
import type { Storage } from '../storage/storage';
import type { CreateOptionSpec } from './create-options';
import type { DriverCapabilities, FormatDriver } from './driver';

/** What a header says, as plain data: structured-cloneable, the same in every thread, fixed while the image is open. */
export interface ImageHeader {
  format: string;
  /** Bytes, at open. The live size is `ImageState.virtualSize`. */
  virtualSize: number;
  /** Bytes; 0 for formats without clusters. */
  clusterSize: number;
  /** The backing file as the header names it; absent when there is none. */
  backing?: { name: string; format?: string };
  /** An external file with the guest data, as the header names it; absent when the image file has them itself. */
  dataFile?: { name: string };
  /** Not cleanly closed by its last writer (QED's need-check bit). */
  dirty: boolean;
  /** Nobody said the format: it was guessed from the first bytes. */
  probed?: boolean;
  /** Opened although others may write it meanwhile: nothing that is read need fit together. */
  shared?: boolean;
}

export interface CreateOptions {
  /** Bytes; a multiple of 512. */
  size: number;
  backing?: { name: string; format?: string };
  clusterSize?: number;
  tableSize?: number;
  preallocation?: 'off' | 'metadata' | 'falloc' | 'full';
  /** qcow2: version of the header; 3 when absent. */
  version?: 2 | 3;
  /** qcow2: width of a reference count, 1 to 64. */
  refcountBits?: number;
  lazyRefcounts?: boolean;
  extendedL2?: boolean;
  /** qcow2: an external file for the guest data, as the header names it; `raw`: it must always read as the disk does. */
  dataFile?: { name: string; raw: boolean };
  compressionType?: 'zlib' | 'zstd';
}

/** A value of `qemu-img info --output=json`. */
export type InfoValue = string | number | boolean | InfoValue[] | { [key: string]: InfoValue };

/** An internal snapshot, in the words of `qemu-img info --output=json` (SnapshotInfo) and their order. */
export interface SnapshotInfo {
  icount?: number;
  'vm-clock-nsec': number;
  name: string;
  'date-sec': number;
  'date-nsec': number;
  'vm-clock-sec': number;
  id: string;
  'vm-state-size': number;
}

/** What a format has to say of an image beside its header. */
export interface FormatDescription {
  snapshots?: SnapshotInfo[];
  specific?: { type: string; data: { [key: string]: InfoValue } };
}

/** Counts in the words of `qemu-img check --output=json` (ImageCheck). */
export interface CheckResult {
  checkErrors: number;
  corruptions: number;
  leaks: number;
  corruptionsFixed: number;
  leaksFixed: number;
  totalClusters: number;
  allocatedClusters: number;
  fragmentedClusters: number;
  compressedClusters: number;
  imageEndOffset: number;
  /** One line for each inconsistency (at most CHECK_MESSAGES_MAX, then a line that counts the rest). */
  messages: string[];
}

export type RepairMode = 'none' | 'leaks' | 'all';

export interface FormatModule {
  readonly name: string;
  readonly capabilities: DriverCapabilities;
  /** Do the first bytes (up to 512, fewer for a short file) look like this format? Raw answers false: it is what is left. */
  probe(head: Uint8Array): boolean;
  /** Reads and validates the header. Bounds every field before it is used. Changes nothing. */
  readHeader(storage: Storage): ImageHeader;
  /** Fills the shared state of a newly opened image (main thread, once): sizes, file end, dirty bit. Changes nothing on disk. */
  initState(header: ImageHeader, storage: Storage, state: ImageState): void;
  /**
   * What must be true on disk before the first write: bits cleared, an image that was not closed cleanly checked. Called
   * once, after the lock is taken and before `initState`. May change the header object. Absent: nothing to do.
   */
  prepareWrite?(header: ImageHeader, storage: Storage): void;
  /**
   * This thread's driver over the shared state. `imageId` keys the image's tables in the cache.
   * @param data the file that `header.dataFile` names
   */
  attach(
    header: ImageHeader,
    storage: Storage,
    state: ImageState,
    cache: TableCache,
    imageId: number,
    data?: Storage,
  ): FormatDriver;
  /**
   * Writes a new image into an empty storage. Absent: cannot be created.
   * @param data the file that `options.dataFile` names, which is emptied; absent when there is none
   */
  create?(storage: Storage, options: CreateOptions, data?: Storage): void;
  /** What `create -o` takes, in the order in which it is shown. Absent: nothing. */
  readonly createOptions?: readonly CreateOptionSpec[];
  /**
   * What `info` shows of this format alone.
   * @param state of an open image: what has changed since the header was read
   */
  describe?(header: ImageHeader, storage: Storage, state?: ImageState): FormatDescription;
  /** As `readHeader`, for `check`: what a repair makes anew need not be where the header says. Absent: the same. */
  readDamagedHeader?(storage: Storage): ImageHeader;
  /** Checks the tables, and repairs when asked and the storage is writable. Absent: this format has no checks. */
  check?(header: ImageHeader, storage: Storage, repair: RepairMode): CheckResult;
}
