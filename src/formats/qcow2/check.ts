/**
 * Consistency check of a qcow2 image. Works on the storage alone: nothing else has the image open.
 *
 * References to every cluster are counted from the header, the L1 and L2 tables of the disk and of every snapshot, the snapshot
 * table, the bitmaps, and the refcount table and blocks themselves; then compared with the counts on disk. Higher on disk: a
 * leak, waste of space. Lower: a corruption, the cluster may be handed out while it is in use. Then the copied flags.
 *
 * Memory: a few bytes for each cluster that is in use (bounded), one L2 table, some refcount blocks.
 */
import { BlockError } from '../../errors';
import type { Storage } from '../../storage/storage';
import { divCeil } from '../../units';
import { CheckMessages } from '../check-messages';
import type { CheckResult, RepairMode } from '../format';
import type { Qcow2Header } from './layout';
import { repairQcow2 } from './repair';
import { scanQcow2 } from './scan';

/**
 * Checks the image and, when asked, repairs it: see `repair.ts` for what is done, in which order.
 *
 * @param storage writable when `repair` is not `none`, and not in use by anybody else
 */
export function checkQcow2(header: Qcow2Header, storage: Storage, repair: RepairMode): CheckResult {
  const { path } = storage;
  if (repair !== 'none' && storage.readOnly) {
    throw new BlockError('READ_ONLY', `Cannot repair qcow2 image "${path}": it is open read-only`, { path });
  }
  const messages = new CheckMessages();
  let scan = scanQcow2(header, storage, messages);
  const fixed = { corruptions: 0, leaks: 0 };
  if (repair !== 'none') {
    const repaired = repairQcow2(scan, repair, messages);
    fixed.corruptions = repaired.corruptions;
    fixed.leaks = repaired.leaks;
    scan = repaired.scan;
  }
  const { report } = scan;
  return {
    checkErrors: report.checkErrors,
    corruptions: report.corruptions,
    leaks: report.leaks,
    corruptionsFixed: fixed.corruptions,
    leaksFixed: fixed.leaks,
    totalClusters: divCeil(header.virtualSize, header.clusterSize),
    allocatedClusters: report.allocatedClusters,
    fragmentedClusters: report.fragmentedClusters,
    compressedClusters: report.compressedClusters,
    imageEndOffset: (report.highestCluster + 1) * header.clusterSize,
    messages: messages.lines(),
  };
}
