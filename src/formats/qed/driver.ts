/** QED for the engine: little-endian tables, zero clusters, the need-check bit. Lookups are in `two-level.ts`. */
import type { ImageState } from '../../shared/image-state';
import type { TableCache } from '../../shared/table-cache';
import type { Storage } from '../../storage/storage';
import type { DriverCapabilities } from '../driver';
import { TwoLevelDriver } from '../two-level';
import { encodeQedHeader, maxVirtualSize, QED_ZERO_CLUSTER, type QedHeader } from './header';

export const QED_CAPABILITIES: DriverCapabilities = { clusters: true, backing: true };

export class QedDriver extends TwoLevelDriver {
  readonly format = 'qed';
  readonly capabilities = QED_CAPABILITIES;
  readonly usesDirtyBit: boolean;
  readonly maxVirtualSize: number;

  constructor(
    private readonly header: QedHeader,
    storage: Storage,
    state: ImageState,
    cache: TableCache,
    imageId: number,
  ) {
    const { clusterSize, tableSize, headerSize } = header;
    const layout = {
      name: 'QED',
      clusterSize,
      tableBytes: tableSize * clusterSize,
      tableAlignment: clusterSize,
      firstCluster: headerSize * clusterSize,
      littleEndian: true,
      zeroEntry: QED_ZERO_CLUSTER,
    };
    super(layout, storage, state, cache, imageId);
    this.usesDirtyBit = header.backing === undefined;
    const largest = maxVirtualSize(clusterSize, tableSize);
    this.maxVirtualSize = largest > BigInt(Number.MAX_SAFE_INTEGER) ? Number.MAX_SAFE_INTEGER : Number(largest);
  }

  writeHeader(fields: { dirty: boolean; virtualSize: number }): void {
    const bytes = encodeQedHeader({ ...this.header, ...fields });
    this.storage.write(0, bytes, 0, bytes.length, 'header-update');
  }
}
