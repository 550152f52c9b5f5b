/** Raw: the file is the disk. No tables, no header, no backing file. */
import type { ImageState } from '../../shared/image-state';
import type { TableSlice } from '../../shared/table-cache';
import type { Storage } from '../../storage/storage';
import type { DriverCapabilities, FormatDriver, Mapping, Reservation } from '../driver';

export const RAW_CAPABILITIES: DriverCapabilities = { clusters: false, backing: false };

export class RawDriver implements FormatDriver {
  readonly format = 'raw';
  readonly capabilities = RAW_CAPABILITIES;
  readonly clusterSize = 0;
  readonly hasZeroClusters = true;
  readonly zeroesInPlace = false;
  readonly granule = 0;
  readonly data: Storage;
  readonly usesDirtyBit = false;
  readonly maxVirtualSize = Number.MAX_SAFE_INTEGER;
  readonly sliceSpan = Number.MAX_SAFE_INTEGER;

  constructor(
    readonly storage: Storage,
    readonly state: ImageState,
  ) {
    this.data = storage;
  }

  map(guest: number, maxLength: number): Mapping {
    return { kind: 'data', length: maxLength, offset: guest, writable: true };
  }

  prepareTables(): TableSlice | undefined {
    return undefined;
  }

  reserve(): Reservation {
    throw new Error('raw images have no clusters to reserve');
  }

  release(): void {}
  giveBack(): void {}
  cutTail(): void {}
  growHostFile(): void {}

  publish(): TableSlice | undefined {
    return undefined;
  }

  writeHeader(): void {}
}
