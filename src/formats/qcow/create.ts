/** Writes a new qcow image: fields, backing name, empty L1 table. The bytes are those of `qemu-img create -f qcow`. */
import { BlockError, type BlockErrorCode, hex } from '../../errors';
import type { Storage } from '../../storage/storage';
import { alignUp, isPowerOfTwo, SECTOR_SIZE } from '../../units';
import type { CreateOptions } from '../format';
import { ENTRY_BYTES } from '../two-level';
import {
  encodeQcowHeader,
  MAX_CLUSTER_BITS,
  MIN_CLUSTER_BITS,
  QCOW_BACKING_NAME_MAX,
  QCOW_HEADER_BYTES,
  type QcowHeader,
  qcowL1Bytes,
  qcowMaxSize,
} from './header';

/** What qemu-img takes: an L2 table is a cluster. */
const ALONE = { clusterBits: 12, l2Bits: 9 };
/** With a backing file: small clusters, so that little is copied from it. */
const OVERLAY = { clusterBits: 9, l2Bits: 12 };

/**
 * Makes the storage a new, empty image. All options are checked before the first byte changes, so that a refusal leaves
 * what was there. `clusterSize` is for programs: the command line has no word for it. Preallocation has nothing to
 * allocate: the tables of a new image are written, and data clusters have no place before the guest writes to them.
 */
export function createQcow(storage: Storage, options: CreateOptions): void {
  const { path } = storage;
  const name = Buffer.from(options.backing?.name ?? '', 'utf8');
  const header = headerFor(options, name.length, path);
  const descriptor = storage.describe();
  if (descriptor.kind === 'file' && descriptor.isBlockDevice) {
    fail(path, 'UNSUPPORTED_FEATURE', 'it is a block device, and qcow keeps its end in the length of a regular file');
  }
  const l1Bytes = qcowL1Bytes(header, options.size);

  // Everything old goes first, and the header comes last, so that no half-made image can be taken for a good one.
  storage.truncate(0, 'create');
  storage.truncate(header.l1TableOffset + alignUp(l1Bytes, SECTOR_SIZE), 'create');
  const head = Buffer.concat([encodeQcowHeader(header), name]);
  storage.write(0, head, 0, head.length, 'create');
  storage.sync('create');
}

function headerFor(options: CreateOptions, nameBytes: number, path: string): QcowHeader {
  const { size, backing } = options;
  if (nameBytes > QCOW_BACKING_NAME_MAX) {
    fail(
      path,
      'LIMIT_EXCEEDED',
      `backing file name has ${nameBytes} bytes, at most ${QCOW_BACKING_NAME_MAX} are allowed`,
    );
  }
  const geometry = { ...(backing === undefined ? ALONE : OVERLAY) };
  if (options.clusterSize !== undefined) geometry.clusterBits = clusterBitsOf(options.clusterSize, path);
  if (size === 0) fail(path, 'INVALID_FORMAT', 'Image size is too small, cannot be zero length');
  const most = qcowMaxSize(geometry);
  if (!Number.isSafeInteger(size) || size < 0 || size > most) {
    fail(path, 'LIMIT_EXCEEDED', `image size ${size} is not in [512, ${hex(most)}]`);
  }
  if (size % SECTOR_SIZE !== 0) {
    fail(path, 'INVALID_FORMAT', `image size ${hex(size)} is not a multiple of ${SECTOR_SIZE}`);
  }
  return {
    format: 'qcow',
    virtualSize: size,
    clusterSize: 2 ** geometry.clusterBits,
    ...geometry,
    l1TableOffset: alignUp(QCOW_HEADER_BYTES + nameBytes, ENTRY_BYTES),
    backingNameOffset: backing === undefined ? 0 : QCOW_HEADER_BYTES,
    backingNameSize: nameBytes,
    mtime: 0,
    dirty: false,
  };
}

function clusterBitsOf(clusterSize: number, path: string): number {
  const [least, most] = [2 ** MIN_CLUSTER_BITS, 2 ** MAX_CLUSTER_BITS];
  if (!isPowerOfTwo(clusterSize) || clusterSize < least || clusterSize > most) {
    fail(
      path,
      'INVALID_FORMAT',
      `cluster size ${hex(clusterSize)} is not a power of two in [${hex(least)}, ${hex(most)}]`,
    );
  }
  return Math.log2(clusterSize);
}

function fail(path: string, code: BlockErrorCode, problem: string): never {
  throw new BlockError(code, `Cannot create qcow image "${path}": ${problem}`, { path });
}
