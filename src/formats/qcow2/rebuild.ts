/**
 * A new refcount structure beside the old one: blocks and table are written behind everything that is in use, and one write of
 * the header, inside one sector, switches to them. Until then the old structure is untouched; afterwards its places are free.
 */
import { BlockError } from '../../errors';
import { divCeil } from '../../units';
import { encodeQcow2Fields } from './header';
import { type Qcow2Header, REFCOUNT_TABLE_MAX_BYTES } from './layout';
import { encodeRefcounts } from './refcount-codec';
import type { Qcow2Scan } from './scan';

interface Plan {
  /** Host cluster of each block, by index. */
  blocks: Map<number, number>;
  tableCluster: number;
  tableClusters: number;
  snapshotsCluster: number;
}

/**
 * @param scan its counts are used up: scan again afterwards
 * @param header gets the new places
 * @param snapshots a new snapshot table that the same write switches to
 */
export function rebuildRefcounts(
  scan: Qcow2Scan,
  header: Qcow2Header,
  snapshots: { count: number; bytes: Buffer } | undefined,
): void {
  const { report } = scan;
  const { storage } = report;
  const { clusterSize, refcountOrder } = header;
  forgetOld(scan, snapshots !== undefined);
  const plan = planNew(scan, snapshots?.bytes.length ?? 0);
  if (snapshots !== undefined) {
    header.snapshotCount = snapshots.count;
    header.snapshotsOffset = snapshots.count === 0 ? 0 : plan.snapshotsCluster * clusterSize;
    storage.write(plan.snapshotsCluster * clusterSize, snapshots.bytes, 0, snapshots.bytes.length, 'check-repair');
  }
  const table = Buffer.alloc(plan.tableClusters * clusterSize);
  for (const [index, cluster] of plan.blocks) {
    const first = (index * clusterSize * 8) / 2 ** refcountOrder;
    const block = encodeRefcounts(refcountOrder, clusterSize, (at) => report.wanted(first + at));
    storage.write(cluster * clusterSize, block, 0, clusterSize, 'check-repair');
    table.writeBigUInt64BE(BigInt(cluster * clusterSize), index * 8);
  }
  storage.write(plan.tableCluster * clusterSize, table, 0, table.length, 'check-repair');
  storage.sync('check-repair');
  header.refcountTableOffset = plan.tableCluster * clusterSize;
  header.refcountTableClusters = plan.tableClusters;
  const fields = encodeQcow2Fields(header);
  storage.write(0, fields, 0, fields.length, 'header-update');
  storage.sync('check-repair');
}

/** Takes the references of the old structure back. Those of ranges outside the file were never counted. */
function forgetOld({ report, structure, snapshots }: Qcow2Scan, snapshotsToo: boolean): void {
  const { header, counts } = report;
  const { clusterSize } = header;
  const forget = (offset: number, length: number) => {
    if (length === 0 || offset + length - report.fileSize >= clusterSize) return;
    const last = Math.floor((offset + length - 1) / clusterSize);
    for (let cluster = Math.floor(offset / clusterSize); cluster <= last; cluster++) counts.add(cluster, -1);
  };
  forget(header.refcountTableOffset, header.refcountTableClusters * clusterSize);
  for (const cluster of structure.counted) counts.add(cluster, -1);
  if (snapshotsToo) forget(header.snapshotsOffset, snapshots.length);
}

/** Finds places and counts them. A block that counts its own place, or another new one, is found by asking again. */
function planNew({ report, structure }: Qcow2Scan, snapshotBytes: number): Plan {
  const { header, counts, storage } = report;
  const { clusterSize } = header;
  const { perBlock } = structure;
  const descriptor = storage.describe();
  const isDevice = descriptor.kind === 'file' && descriptor.isBlockDevice;
  // Behind the end of the file nothing is lost that a later repair by hand could want; a device has no such end.
  let next = Math.max(counts.end(), report.highestCluster + 1, isDevice ? 0 : report.fileClusters);
  const blocks = new Map<number, number>();
  const take = (count: number): number => {
    const first = next;
    next += count;
    for (let cluster = first; cluster < next; cluster++) counts.add(cluster, 1);
    return first;
  };
  const need = (index: number): void => {
    for (let wanted = index; !blocks.has(wanted); ) {
      const cluster = take(1);
      blocks.set(wanted, cluster);
      wanted = Math.floor(cluster / perBlock);
    }
  };
  const snapshotsCluster = take(divCeil(snapshotBytes, clusterSize));
  for (const { first, count } of counts.pages()) {
    for (let cluster = first; cluster < first + count; cluster++) {
      if (counts.get(cluster) !== 0) need(Math.floor(cluster / perBlock));
    }
  }
  for (;;) {
    const highest = [...blocks.keys()].reduce((a, b) => Math.max(a, b), 0);
    const tableClusters = divCeil((highest + 1) * 8, clusterSize);
    if (tableClusters * clusterSize > REFCOUNT_TABLE_MAX_BYTES) tooLarge(storage.path);
    const before = blocks.size;
    const [first, last] = [next, next + tableClusters - 1].map((cluster) => Math.floor(cluster / perBlock));
    for (let index = first; index <= last; index++) need(index);
    if (blocks.size === before) return { blocks, tableCluster: take(tableClusters), tableClusters, snapshotsCluster };
  }
}

function tooLarge(path: string): never {
  const problem = `the new refcount table would have more than ${REFCOUNT_TABLE_MAX_BYTES} bytes`;
  throw new BlockError('LIMIT_EXCEEDED', `Cannot repair qcow2 image "${path}": ${problem}`, { path });
}
