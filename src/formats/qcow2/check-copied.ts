/**
 * The copied flag: set exactly when the count on disk is one. A flag that is set wrongly lets a write change what a snapshot
 * still reads; one that is missing costs a copy. Only the tables of the disk itself have valid flags.
 */
import { checkL1Entry, checkL2Entry, type RawEntry, wordsOf } from './check-codec';
import { NO_COUNT } from './check-refcounts';
import type { CheckReport } from './check-report';
import { eachL1Entry, type L1Table, readEntry } from './check-tables';
import { COPIED } from './entry';

/** Tells the count of a cluster, or NO_COUNT. */
export interface CountSource {
  countOf(cluster: number): number;
}

/** Called for an entry whose flag is wrong. */
export type FlagRepair = (at: number, entry: RawEntry, set: boolean, table: L1Table | number) => void;

export function checkCopiedFlags(report: CheckReport, source: CountSource, table: L1Table, onWrong?: FlagRepair): void {
  const { header } = report;
  const { clusterSize } = header;
  const seen = report.newCounts();
  const bytes = Buffer.alloc(clusterSize);
  eachL1Entry(report, table, (high, low, at, index) => {
    const { offset } = checkL1Entry(header, high, low);
    const entry: RawEntry = { high, low, zeroes: 0, present: 0 };
    const count = source.countOf(Math.floor(offset / clusterSize));
    if (wrongFlag(entry, count)) {
      const message = `OFLAG_COPIED L2 cluster: l1_index=${index} l1_entry=${wordsOf(entry)} refcount=${count}`;
      wrong(report, message, onWrong !== undefined);
      onWrong?.(at, withFlag(entry, count === 1), count === 1, table);
    }
    if (offset % clusterSize !== 0 || offset >= report.fileClusters * clusterSize) return;
    if (seen.get(offset / clusterSize) !== 0) return;
    seen.add(offset / clusterSize, 1);
    checkL2Flags(report, source, offset, bytes, onWrong);
  });
}

function checkL2Flags(
  report: CheckReport,
  source: CountSource,
  table: number,
  bytes: Buffer,
  onWrong: FlagRepair | undefined,
): void {
  const { header } = report;
  const { clusterSize } = header;
  if (report.storage.nextData(table) >= table + clusterSize) return;
  if (!report.readTable('L2 table', table, bytes, clusterSize)) return;
  const entryBytes = header.extendedL2 ? 16 : 8;
  for (let at = 0; at < clusterSize; at += entryBytes) {
    const entry = readEntry(bytes, at, header.extendedL2);
    if (entry.high === 0 && entry.low === 0) continue;
    const { compressed, allocated, offset } = checkL2Entry(header, entry, at / entryBytes);
    if (compressed || !allocated) continue;
    // Clusters of an external file have no counts and belong to one entry each.
    const count = header.dataFile === undefined ? source.countOf(Math.floor(offset / clusterSize)) : 1;
    if (!wrongFlag(entry, count)) continue;
    const message = `OFLAG_COPIED data cluster: l2_entry=${wordsOf(entry)} refcount=${count}`;
    wrong(report, message, onWrong !== undefined);
    onWrong?.(table + at, withFlag(entry, count === 1), count === 1, table);
  }
}

function wrongFlag(entry: RawEntry, count: number): boolean {
  return count !== NO_COUNT && entry.high >= COPIED !== (count === 1);
}

function withFlag(entry: RawEntry, set: boolean): RawEntry {
  return { ...entry, high: (entry.high % COPIED) + (set ? COPIED : 0) };
}

function wrong(report: CheckReport, what: string, repairing: boolean): void {
  report.copiedErrors++;
  if (!repairing) report.messages.add(`ERROR ${what}`);
}
