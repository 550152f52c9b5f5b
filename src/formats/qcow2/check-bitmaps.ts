/** References of persistent bitmaps: the directory, each bitmap's table, its clusters. */
import { alignUp } from '../../units';
import { hasReservedBits } from './check-codec';
import { type CheckReport, hexOf } from './check-report';
import { offsetOf } from './entry';

const ENTRY_BYTES = 24;
/** Entries of one bitmap's table; QEMU's limit and ours. */
const TABLE_MAX_ENTRIES = 0x8000000 / 8;
/** Bytes of a table in memory at once. */
const SLICE_BYTES = 64 * 1024;

/**
 * Counts what the bitmaps refer to. Bitmaps that the header calls inconsistent are no references: their clusters are leaked.
 */
export function checkBitmaps(report: CheckReport): void {
  const { bitmaps } = report.header;
  if (bitmaps === undefined) return;
  const { count, directoryOffset, directorySize } = bitmaps;
  if (!report.addRange(directoryOffset, directorySize)) {
    report.bitmapErrors++;
    return;
  }
  const directory = Buffer.alloc(directorySize);
  if (!report.readTable('bitmap directory', directoryOffset, directory, directorySize)) return;
  let at = 0;
  for (let index = 0; index < count; index++) {
    const end = entryEnd(directory, at);
    if (end === undefined) {
      wrong(report, 'bitmap directory is broken');
      return;
    }
    checkBitmap(report, directory, at, index);
    at = end;
  }
}

/** Where the entry ends; undefined when that is not inside the directory. */
function entryEnd(directory: Buffer, at: number): number | undefined {
  if (at + ENTRY_BYTES > directory.length) return;
  const end = alignUp(at + ENTRY_BYTES + directory.readUInt32BE(at + 20) + directory.readUInt16BE(at + 18), 8);
  return end > directory.length ? undefined : end;
}

function checkBitmap(report: CheckReport, directory: Buffer, at: number, index: number): void {
  const { clusterSize } = report.header;
  const table = Number(directory.readBigUInt64BE(at));
  const entries = directory.readUInt32BE(at + 8);
  const flags = directory.readUInt32BE(at + 12);
  if (table % clusterSize !== 0 || entries > TABLE_MAX_ENTRIES || flags % 8 !== flags) {
    const what =
      flags % 8 !== flags ? `flags ${hexOf(flags - (flags % 8))}` : `table ${hexOf(table)}, ${entries} entries`;
    wrong(report, `bitmap ${index}: ${what} not allowed`);
    return;
  }
  if (!report.addRange(table, entries * 8)) {
    report.bitmapErrors++;
    return;
  }
  const slice = Buffer.alloc(Math.min(SLICE_BYTES, entries * 8));
  for (let start = 0; start < entries * 8; start += slice.length) {
    const length = Math.min(slice.length, entries * 8 - start);
    if (!report.readTable('bitmap table', table + start, slice, length)) return;
    for (let i = 0; i < length; i += 8) checkEntry(report, slice.readUInt32BE(i), slice.readUInt32BE(i + 4), index);
  }
}

function checkEntry(report: CheckReport, high: number, low: number, index: number): void {
  const offset = offsetOf(high, low);
  if (hasReservedBits(high, low)) {
    wrong(report, `bitmap ${index}: table entry has reserved bits set`);
    return;
  }
  // Without a cluster, bit 0 says whether all bits are 0 or 1.
  if (offset === 0) return;
  if (offset % report.header.clusterSize !== 0 || low % 2 !== 0) {
    wrong(report, `bitmap ${index}: cluster at ${hexOf(offset)} is not properly aligned or has bit 0 set`);
  } else if (!report.addRange(offset, report.header.clusterSize)) report.bitmapErrors++;
}

function wrong(report: CheckReport, problem: string): void {
  report.bitmapErrors++;
  report.messages.add(`ERROR ${problem}`);
}
