/**
 * Walks L1 and L2 tables and counts what they refer to. Each L2 table is read once however many snapshots share it: first
 * the references of all L1 tables are counted, then each table that was named is gone through with that number.
 */
import type { EntryStatus, RawEntry } from './check-codec';
import { checkL1Entry, checkL2Entry, droppedEntry } from './check-codec';
import type { CheckReport } from './check-report';
import type { ClusterCounts } from './cluster-counts';

/** Bytes of an L1 table in memory at once. */
const SLICE_BYTES = 64 * 1024;
/** L2 tables at places that are no clusters which are gone through all the same, as qemu-img does; ours. */
const UNALIGNED_MAX = 16;

export interface L1Table {
  offset: number;
  entries: number;
  /** Of the disk itself: the statistics are about it alone. */
  active: boolean;
}

/** Called for an entry to be repaired: what belongs there, and where it is in the file. */
export type EntryRepair = (at: number, entry: RawEntry, table: { offset: number; level: 'l1' | 'l2' }) => void;

export class TableWalk {
  /** Absent: nothing is repaired. */
  onRepair: EntryRepair | undefined;
  readonly #report: CheckReport;
  readonly #seen: ClusterCounts;
  readonly #table: Buffer;
  #unaligned = 0;

  constructor(report: CheckReport) {
    this.#report = report;
    this.#seen = report.newCounts();
    this.#table = Buffer.alloc(report.header.clusterSize);
  }

  /** @param tables the active one first */
  run(tables: readonly L1Table[]): void {
    for (const table of tables) {
      eachL1Entry(this.#report, table, (high, low, at) => this.#countL1Entry(table, high, low, at));
    }
    for (const table of tables) {
      eachL1Entry(this.#report, table, (high, low) => this.#followL1Entry(table, high, low));
    }
  }

  #countL1Entry(table: L1Table, high: number, low: number, at: number): void {
    const report = this.#report;
    const status = checkL1Entry(report.header, high, low);
    const inside = this.#account(status, 1);
    const { clusterSize } = report.header;
    if (inside && status.offset % clusterSize === 0) report.tableRefs.add(status.offset / clusterSize, 1);
    if (status.findings.length === 0) return;
    const drop = status.findings.some((finding) => finding.drop);
    const entry = drop ? { high: 0, low: 0, zeroes: 0, present: 0 } : status.repaired;
    this.onRepair?.(at, entry, { offset: table.offset, level: 'l1' });
  }

  #followL1Entry(table: L1Table, high: number, low: number): void {
    const report = this.#report;
    const { clusterSize } = report.header;
    const { offset } = checkL1Entry(report.header, high, low);
    if (offset + clusterSize - report.fileSize >= clusterSize) return;
    if (offset % clusterSize !== 0) {
      if (this.#unaligned++ < UNALIGNED_MAX) this.#walkL2(offset, 1, table.active, undefined);
      return;
    }
    const cluster = offset / clusterSize;
    if (this.#seen.get(cluster) !== 0) return;
    this.#seen.add(cluster, 1);
    this.#walkL2(offset, report.tableRefs.get(cluster), table.active, this.onRepair);
  }

  #walkL2(table: number, times: number, active: boolean, onRepair: EntryRepair | undefined): void {
    const report = this.#report;
    const { header } = report;
    const { clusterSize } = header;
    const bytes = this.#table;
    // Holes of the host file hold no entries.
    if (report.storage.nextData(table) >= table + clusterSize) return;
    if (!report.readTable('L2 table', table, bytes, clusterSize)) return;
    const entryBytes = header.extendedL2 ? 16 : 8;
    let expected = 0;
    for (let at = 0; at < clusterSize; at += entryBytes) {
      const entry = readEntry(bytes, at, header.extendedL2);
      if (entry.high === 0 && entry.low === 0 && entry.present === 0) continue;
      const status = checkL2Entry(header, entry, at / entryBytes);
      this.#account(status, times);
      if (active && status.allocated) {
        report.allocatedClusters++;
        if (status.compressed) {
          // Compressed clusters lie where the one before ended: QEMU counts them all as fragmented.
          report.compressedClusters++;
          report.fragmentedClusters++;
        } else {
          if (expected !== 0 && status.offset !== expected) report.fragmentedClusters++;
          expected = status.offset + clusterSize;
        }
      }
      if (status.findings.length === 0 || onRepair === undefined) continue;
      const drop = status.findings.some((finding) => finding.drop);
      onRepair(table + at, drop ? droppedEntry(header) : status.repaired, { offset: table, level: 'l2' });
    }
  }

  /** Counts references and findings. @returns false when what is referred to is not in the file, which is a finding too */
  #account(status: EntryStatus, times: number): boolean {
    const report = this.#report;
    for (const { message } of status.findings) {
      report.entryErrors += times;
      report.messages.add(message);
    }
    const { range } = status;
    if (range === undefined || report.addRange(range.offset, range.length, times)) return true;
    report.entryErrors += times;
    status.findings.push({ message: '', drop: true });
    return false;
  }
}

/** Calls `visit` for the entries that are not 0, slice by slice. */
export function eachL1Entry(
  report: CheckReport,
  table: L1Table,
  visit: (high: number, low: number, at: number, index: number) => void,
): void {
  const end = table.offset + table.entries * 8;
  const slice = Buffer.alloc(Math.min(SLICE_BYTES, table.entries * 8));
  for (let start = table.offset; start < Math.min(end, report.fileSize); start += slice.length) {
    const length = Math.min(slice.length, end - start);
    if (report.storage.nextData(start) >= start + length) continue;
    if (!report.readTable('L1 table', start, slice, length)) return;
    for (let at = 0; at < length; at += 8) {
      const high = slice.readUInt32BE(at);
      const low = slice.readUInt32BE(at + 4);
      if (high !== 0 || low !== 0) visit(high, low, start + at, (start + at - table.offset) / 8);
    }
  }
}

export function readEntry(bytes: Buffer, at: number, extended: boolean): RawEntry {
  return {
    high: bytes.readUInt32BE(at),
    low: bytes.readUInt32BE(at + 4),
    zeroes: extended ? bytes.readUInt32BE(at + 8) : 0,
    present: extended ? bytes.readUInt32BE(at + 12) : 0,
  };
}

export function writeEntry(entry: RawEntry, extended: boolean): Buffer {
  const bytes = Buffer.alloc(extended ? 16 : 8);
  bytes.writeUInt32BE(entry.high, 0);
  bytes.writeUInt32BE(entry.low, 4);
  if (!extended) return bytes;
  bytes.writeUInt32BE(entry.zeroes, 8);
  bytes.writeUInt32BE(entry.present, 12);
  return bytes;
}
