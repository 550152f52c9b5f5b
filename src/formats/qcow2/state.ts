/** What of a qcow2 image changes while it is open, in the shared memory of its ImageState: every thread sees the same. */
import type { ImageState } from '../../shared/image-state';
import { alignUp } from '../../units';
import type { Qcow2Header } from './layout';

const L1_OFFSET = 0;
const L1_ENTRIES = 1;
const REFCOUNT_TABLE_OFFSET = 2;
const REFCOUNT_TABLE_CLUSTERS = 3;
const SNAPSHOTS_OFFSET = 4;
const SNAPSHOT_COUNT = 5;
const SEARCH_FROM = 6;
const WANTED_BLOCK = 7;
const NEXT_L1_OFFSET = 8;
const NEXT_L1_CLUSTERS = 9;
const STREAM_END = 10;

/** Named views of `ImageState.numbers`. Changed with the image's lock held exclusively, under the meta mutex but for the search. */
export class Qcow2State {
  private readonly numbers: Float64Array;

  constructor(private readonly state: ImageState) {
    this.numbers = state.numbers;
  }

  /** Once, in the main thread, when the image is opened. */
  init(header: Qcow2Header): void {
    this.l1Offset = header.l1TableOffset;
    this.l1Entries = header.l1Entries;
    this.refcountTableOffset = header.refcountTableOffset;
    this.refcountTableClusters = header.refcountTableClusters;
    this.snapshotsOffset = header.snapshotsOffset;
    this.snapshotCount = header.snapshotCount;
    if (header.corrupt) this.state.markCorrupt();
  }

  /** The header as it is now. */
  current(header: Qcow2Header, fields: { dirty: boolean; virtualSize: number }): Qcow2Header {
    return {
      ...header,
      ...fields,
      l1TableOffset: this.l1Offset,
      l1Entries: this.l1Entries,
      refcountTableOffset: this.refcountTableOffset,
      refcountTableClusters: this.refcountTableClusters,
      snapshotsOffset: this.snapshotsOffset,
      snapshotCount: this.snapshotCount,
      corrupt: this.state.corrupt,
    };
  }

  /** What the header names in `[offset, offset + length)`, or the header itself; undefined: nothing. Lock held, of either side. */
  tablesIn(offset: number, length: number, clusterSize: number): string | undefined {
    if (offset < clusterSize) return 'the header';
    const end = offset + length;
    const { l1Offset, refcountTableOffset, snapshotsOffset } = this;
    if (l1Offset < end && offset < l1Offset + alignUp(this.l1Entries * 8, clusterSize)) return 'the L1 table';
    if (refcountTableOffset < end && offset < refcountTableOffset + this.refcountTableClusters * clusterSize) {
      return 'the refcount table';
    }
    if (snapshotsOffset < end && offset < snapshotsOffset + clusterSize && this.snapshotCount > 0) {
      return 'the snapshot table';
    }
    return undefined;
  }

  get l1Offset(): number {
    return this.numbers[L1_OFFSET];
  }
  set l1Offset(value: number) {
    this.numbers[L1_OFFSET] = value;
  }

  get l1Entries(): number {
    return this.numbers[L1_ENTRIES];
  }
  set l1Entries(value: number) {
    this.numbers[L1_ENTRIES] = value;
  }

  get refcountTableOffset(): number {
    return this.numbers[REFCOUNT_TABLE_OFFSET];
  }
  set refcountTableOffset(value: number) {
    this.numbers[REFCOUNT_TABLE_OFFSET] = value;
  }

  get refcountTableClusters(): number {
    return this.numbers[REFCOUNT_TABLE_CLUSTERS];
  }
  set refcountTableClusters(value: number) {
    this.numbers[REFCOUNT_TABLE_CLUSTERS] = value;
  }

  get snapshotsOffset(): number {
    return this.numbers[SNAPSHOTS_OFFSET];
  }
  set snapshotsOffset(value: number) {
    this.numbers[SNAPSHOTS_OFFSET] = value;
  }

  get snapshotCount(): number {
    return this.numbers[SNAPSHOT_COUNT];
  }
  set snapshotCount(value: number) {
    this.numbers[SNAPSHOT_COUNT] = value;
  }

  /** No cluster below this index is free, but for those in the list of free places. */
  get searchFrom(): number {
    return this.numbers[SEARCH_FROM];
  }
  set searchFrom(value: number) {
    this.numbers[SEARCH_FROM] = value;
  }

  /** Index of the refcount block that an allocation ran out at, plus one; 0: none is wanted. */
  get wantedBlock(): number {
    return this.numbers[WANTED_BLOCK];
  }
  set wantedBlock(value: number) {
    this.numbers[WANTED_BLOCK] = value;
  }

  /** Place of the L1 table that is about to replace this one; `nextL1Clusters` 0: there is none. */
  get nextL1Offset(): number {
    return this.numbers[NEXT_L1_OFFSET];
  }
  set nextL1Offset(value: number) {
    this.numbers[NEXT_L1_OFFSET] = value;
  }

  get nextL1Clusters(): number {
    return this.numbers[NEXT_L1_CLUSTERS];
  }
  set nextL1Clusters(value: number) {
    this.numbers[NEXT_L1_CLUSTERS] = value;
  }

  /** Where the next stream of compressed data goes, behind the last one in its cluster; 0: nowhere yet. */
  get streamEnd(): number {
    return this.numbers[STREAM_END];
  }
  set streamEnd(value: number) {
    this.numbers[STREAM_END] = value;
  }
}
