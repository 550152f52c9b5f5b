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
import { checkBitmaps } from './check-bitmaps';
import { checkCopiedFlags } from './check-copied';
import { RefcountStructure } from './check-refcounts';
import { CheckReport } from './check-report';
import { checkSnapshotTable, type SnapshotTable, snapshotL1Tables } from './check-snapshots';
import { type EntryRepair, type L1Table, TableWalk } from './check-tables';
import type { Qcow2Header } from './layout';
import { repairQcow2 } from './repair';

/** One whole walk. */
export interface Qcow2Scan {
  report: CheckReport;
  structure: RefcountStructure;
  snapshots: SnapshotTable;
  /** The active table first. */
  l1Tables: L1Table[];
}

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

/** @param onRepair called for every entry of an L1 or L2 table that a repair changes */
export function scanQcow2(
  header: Qcow2Header,
  storage: Storage,
  messages: CheckMessages,
  onRepair?: EntryRepair,
): Qcow2Scan {
  const report = new CheckReport(header, storage, messages);
  const structure = new RefcountStructure(report);
  const snapshots = checkSnapshotTable(report);
  report.addRange(0, header.clusterSize);
  const active: L1Table = { offset: header.l1TableOffset, entries: header.l1Entries, active: true };
  if (!report.addRange(active.offset, active.entries * 8)) report.entryErrors++;
  const l1Tables = [active, ...snapshotL1Tables(report, snapshots)];
  const walk = new TableWalk(report);
  walk.onRepair = onRepair;
  walk.run(l1Tables);
  checkBitmaps(report);
  structure.check();
  const scan = { report, structure, snapshots, l1Tables };
  // With a table unread, clusters that it names would look unused.
  if (report.checkErrors > 0 || onRepair !== undefined) return scan;
  structure.compare();
  checkCopiedFlags(report, structure, active);
  return scan;
}
