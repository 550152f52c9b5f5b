/** Places and sizes of the tables that a qcow2 header names: aligned, bounded, inside the file, outside the header, not in each other. */
import { type BlockErrorCode, hex } from '../../errors';
import { alignUp } from '../../units';
import { L1_MAX_BYTES, l1EntriesFor, maxVirtualSize, type Qcow2Header, REFCOUNT_TABLE_MAX_BYTES } from './layout';

/** Says why the image is refused. */
type Refuse = (code: BlockErrorCode, problem: string) => never;

/** All tables but the refcount table. */
export function checkTables(header: Qcow2Header, fileSize: number, refuse: Refuse): void {
  const { clusterSize, virtualSize, extendedL2 } = header;
  const most = maxVirtualSize(clusterSize, extendedL2);
  if (virtualSize > most) {
    refuse(
      'INVALID_FORMAT',
      `image size ${hex(virtualSize)} is larger than ${hex(most)}, the most its tables can address`,
    );
  }
  const l1Bytes = header.l1Entries * 8;
  if (l1Bytes > L1_MAX_BYTES) {
    refuse('LIMIT_EXCEEDED', `L1 table has ${l1Bytes} bytes, at most ${L1_MAX_BYTES} are supported`);
  }
  const needed = l1EntriesFor(virtualSize, clusterSize, extendedL2);
  if (header.l1Entries < needed) {
    refuse('INVALID_FORMAT', `L1 table has ${header.l1Entries} entries, the image size needs ${needed}`);
  }
  const place = (name: string, offset: number, length: number) =>
    checkPlace(header, fileSize, refuse, name, offset, length);
  if (header.l1Entries > 0) place('L1 table', header.l1TableOffset, l1Bytes);
  if (header.snapshotCount > 0) place('snapshot table', header.snapshotsOffset, 1);
  if (header.bitmaps !== undefined) {
    place('bitmap directory', header.bitmaps.directoryOffset, header.bitmaps.directorySize);
  }
  // A repair takes so much memory for it.
  const refcountBytes = header.refcountTableClusters * clusterSize;
  if (refcountBytes > REFCOUNT_TABLE_MAX_BYTES) {
    refuse(
      'LIMIT_EXCEEDED',
      `refcount table has ${refcountBytes} bytes, at most ${REFCOUNT_TABLE_MAX_BYTES} are supported`,
    );
  }
}

/** The refcount table: everything else can be read without it. */
export function checkRefcountTable(header: Qcow2Header, fileSize: number, refuse: Refuse): void {
  const { clusterSize, refcountTableOffset, l1TableOffset } = header;
  const length = header.refcountTableClusters * clusterSize;
  if (length === 0) refuse('INVALID_FORMAT', 'refcount table has 0 clusters, at least 1 is needed');
  checkPlace(header, fileSize, refuse, 'refcount table', refcountTableOffset, length);
  const l1End = l1TableOffset + alignUp(header.l1Entries * 8, clusterSize);
  if (l1TableOffset < refcountTableOffset + length && refcountTableOffset < l1End) {
    refuse(
      'CORRUPT_IMAGE',
      `L1 table at ${hex(l1TableOffset)} and refcount table at ${hex(refcountTableOffset)} overlap`,
    );
  }
}

function checkPlace(
  { clusterSize }: Qcow2Header,
  fileSize: number,
  refuse: Refuse,
  name: string,
  offset: number,
  length: number,
): void {
  if (offset % clusterSize !== 0) {
    refuse('INVALID_FORMAT', `${name} offset ${hex(offset)} is not a multiple of the cluster size ${hex(clusterSize)}`);
  }
  if (offset < clusterSize) {
    refuse('INVALID_FORMAT', `${name} offset ${hex(offset)} is inside the header, which ends at ${hex(clusterSize)}`);
  }
  if (offset + length > alignUp(fileSize, clusterSize)) {
    refuse(
      'CORRUPT_IMAGE',
      `${name} at ${hex(offset)} ends at ${hex(offset + length)}, past the end of the file (${hex(fileSize)})`,
    );
  }
}
