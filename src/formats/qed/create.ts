/**
 * Writes a new QED image: header cluster, backing name behind the fields, empty L1 table. The bytes are those of
 * `qemu-img create -f qed`; geometries for which QEMU miscomputes the limit (large clusters) or which it cannot open
 * afterwards (`table_size=1`) are written as the specification says.
 */
import { BlockError, type BlockErrorCode, hex } from '../../errors';
import type { Storage } from '../../storage/storage';
import { SECTOR_SIZE } from '../../units';
import type { CreateOptions } from '../format';
import { writeZeroBytes } from '../raw/create';
import {
  clusterSizeProblem,
  encodeQedHeader,
  maxVirtualSize,
  QED_BACKING_NAME_LIMIT,
  QED_DEFAULT_CLUSTER_SIZE,
  QED_DEFAULT_TABLE_SIZE,
  QED_F_BACKING_FILE,
  QED_F_BACKING_FORMAT_NO_PROBE,
  QED_HEADER_BYTES,
  type QedHeader,
  tableSizeProblem,
} from './header';

/**
 * Makes the storage a new, empty image. All options are checked before the first byte changes, so that a refusal leaves
 * what was there.
 *
 * Preallocation concerns the clusters that a new image has, header and L1 table: they get host blocks (`falloc`) or are
 * written (`full`), as QEMU does. Data clusters have no place before the guest writes to them.
 */
export function createQed(storage: Storage, options: CreateOptions): void {
  const header = headerFor(storage, options);
  const end = header.l1TableOffset + header.tableSize * header.clusterSize;

  // Everything old goes first, and the header comes last, so that no half-made image can be taken for a good one.
  storage.truncate(0, 'create');
  storage.truncate(end, 'create');
  if (options.preallocation === 'falloc') storage.allocate(0, end, 'create');
  if (options.preallocation === 'full') writeZeroBytes(storage, 0, end);
  const name = Buffer.from(options.backing?.name ?? '', 'utf8');
  const head = Buffer.concat([encodeQedHeader(header), name]);
  storage.write(0, head, 0, head.length, 'create');
  storage.sync('create');
}

/** The header of the new image; throws for options that are not legal. */
function headerFor(storage: Storage, options: CreateOptions): QedHeader {
  const { path } = storage;
  const clusterSize = options.clusterSize ?? QED_DEFAULT_CLUSTER_SIZE;
  const tableSize = options.tableSize ?? QED_DEFAULT_TABLE_SIZE;
  const problem = clusterSizeProblem(clusterSize) ?? tableSizeProblem(tableSize);
  if (problem !== undefined) fail(path, 'INVALID_FORMAT', problem);
  checkSize(options.size, clusterSize, tableSize, path);

  const descriptor = storage.describe();
  if (descriptor.kind === 'file' && descriptor.isBlockDevice) {
    fail(path, 'UNSUPPORTED_FEATURE', 'it is a block device, and QED keeps its end in the length of a regular file');
  }

  const nameBytes = Buffer.byteLength(options.backing?.name ?? '', 'utf8');
  if (nameBytes >= QED_BACKING_NAME_LIMIT) {
    fail(
      path,
      'LIMIT_EXCEEDED',
      `backing file name has ${nameBytes} bytes, at most ${QED_BACKING_NAME_LIMIT - 1} are allowed`,
    );
  }
  let features = 0n;
  if (options.backing !== undefined) features |= QED_F_BACKING_FILE;
  if (options.backing?.format === 'raw') features |= QED_F_BACKING_FORMAT_NO_PROBE;
  return {
    format: 'qed',
    virtualSize: options.size,
    clusterSize,
    tableSize,
    headerSize: 1,
    features,
    compatFeatures: 0n,
    autoclearFeatures: 0n,
    l1TableOffset: clusterSize,
    // The smallest cluster has room for the fields and the longest name: one header cluster is always enough.
    backingNameOffset: options.backing === undefined ? 0 : QED_HEADER_BYTES,
    backingNameSize: nameBytes,
    dirty: false,
  };
}

function checkSize(size: number, clusterSize: number, tableSize: number, path: string): void {
  if (!Number.isSafeInteger(size) || size < 0) {
    fail(path, 'LIMIT_EXCEEDED', `image size ${size} is not in [0, ${hex(Number.MAX_SAFE_INTEGER)}]`);
  }
  if (size % SECTOR_SIZE !== 0)
    fail(path, 'INVALID_FORMAT', `image size ${hex(size)} is not a multiple of ${SECTOR_SIZE}`);
  const max = maxVirtualSize(clusterSize, tableSize);
  if (BigInt(size) > max) {
    const tables = `cluster size ${hex(clusterSize)} and table size ${tableSize}`;
    fail(path, 'LIMIT_EXCEEDED', `image size ${hex(size)} is larger than ${hex(max)}, the most for ${tables}`);
  }
}

function fail(path: string, code: BlockErrorCode, problem: string): never {
  throw new BlockError(code, `Cannot create QED image "${path}": ${problem}`, { path });
}
