/**
 * One internal snapshot for the engine, to read: its own L1 table over the same file, cache and state as the live disk. Its
 * tables never change while it exists, and a request on it keeps what it reads from being freed, as every other request of the
 * image does. The VM state lies behind the disk in the same tables.
 */
import type { ImageState } from '../../shared/image-state';
import type { TableCache, TableSlice } from '../../shared/table-cache';
import type { Storage } from '../../storage/storage';
import type { FormatDriver, Mapping, Reservation } from '../driver';
import { readCompressedCluster } from './compressed';
import { l1EntriesFor, QCOW2_CAPABILITIES, type Qcow2Header } from './layout';
import { Qcow2Mapping } from './mapping';
import type { Qcow2Snapshot } from './snapshot-table';

export class Qcow2SnapshotDriver implements FormatDriver {
  readonly format = 'qcow2';
  readonly capabilities = QCOW2_CAPABILITIES;
  readonly clusterSize: number;
  readonly granule: number;
  readonly usesDirtyBit = false;
  readonly hasZeroClusters = true;
  readonly zeroesInPlace = false;
  readonly maxVirtualSize: number;
  readonly sliceSpan: number;
  private readonly mapping: Qcow2Mapping;

  constructor(
    private readonly header: Qcow2Header,
    snapshot: Qcow2Snapshot,
    readonly storage: Storage,
    readonly data: Storage,
    readonly state: ImageState,
    cache: TableCache,
    imageId: number,
  ) {
    this.mapping = new Qcow2Mapping(header, storage.path, state, cache, imageId, snapshot);
    this.clusterSize = header.clusterSize;
    this.granule = this.mapping.subclusterSize;
    this.sliceSpan = this.mapping.entriesPerSlice * header.clusterSize;
    this.maxVirtualSize = snapshot.virtualSize;
  }

  map(guest: number, maxLength: number): Mapping {
    const mapping = this.mapping.map(guest, maxLength);
    // Shared by definition, whatever the flags of inactive tables say.
    return mapping.kind === 'data' ? { ...mapping, writable: false } : mapping;
  }

  readCompressed(mapping: Extract<Mapping, { kind: 'compressed' }>, cluster: Uint8Array): void {
    readCompressedCluster(this.header, this.storage, mapping, cluster);
  }

  prepareTables(): TableSlice | undefined {
    throw this.cannotWrite();
  }

  reserve(): Reservation {
    throw this.cannotWrite();
  }

  publish(): TableSlice | undefined {
    throw this.cannotWrite();
  }

  writeHeader(): void {
    throw this.cannotWrite();
  }

  release(): void {
    throw this.cannotWrite();
  }

  giveBack(): void {
    throw this.cannotWrite();
  }

  growHostFile(): void {}
  cutTail(): void {}

  private cannotWrite(): Error {
    return new Error(`a snapshot of "${this.storage.path}" is never written`);
  }
}

/** Where the VM state begins in a snapshot's tables: behind the last L2 table of its disk. */
export function vmStateOffset(header: Qcow2Header, snapshot: Qcow2Snapshot): number {
  const span = (header.clusterSize / (header.extendedL2 ? 16 : 8)) * header.clusterSize;
  return l1EntriesFor(snapshot.virtualSize, header.clusterSize, header.extendedL2) * span;
}
