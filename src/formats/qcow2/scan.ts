/** One whole walk over a qcow2 image: what refers to what, and what is wrong. Changes nothing but through `onRepair`. */
import type { Storage } from '../../storage/storage';
import type { CheckMessages } from '../check-messages';
import { checkBitmaps } from './check-bitmaps';
import { checkCopiedFlags } from './check-copied';
import { RefcountStructure } from './check-refcounts';
import { CheckReport } from './check-report';
import { checkSnapshotTable, type SnapshotTable, snapshotL1Tables } from './check-snapshots';
import { type EntryRepair, type L1Table, TableWalk } from './check-tables';
import type { Qcow2Header } from './layout';

/** What it found. */
export interface Qcow2Scan {
  report: CheckReport;
  structure: RefcountStructure;
  snapshots: SnapshotTable;
  /** The active table first. */
  l1Tables: L1Table[];
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
