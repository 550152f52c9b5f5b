/**
 * The snapshot table as a check sees it: lenient, so that one damaged entry does not hide the others. What the entries mean
 * is said in `snapshot-table.ts`.
 */
import { BlockError } from '../../errors';
import { alignUp, KIB } from '../../units';
import type { CheckReport } from './check-report';
import type { L1Table } from './check-tables';
import { L1_MAX_BYTES, SNAPSHOTS_MAX } from './layout';

const ENTRY_BYTES = 40;
/** Bytes of extra data that a version 3 entry has: size of the VM state, size of the disk. */
export const NEEDED_EXTRA_BYTES = 16;
/** QEMU's limit and ours. */
const EXTRA_MAX = 1024;
/** Bytes of the whole table; QEMU's limit and ours. */
const TABLE_MAX = SNAPSHOTS_MAX * KIB;
/**
 * Bytes of L1 tables that a check reads, as a multiple of what the host keeps of the file: tables that do not overlap are
 * never more. Keeps thousands of snapshots that all name one large table from taking hours.
 */
const L1_BYTES_FACTOR = 8;
const L1_BYTES_MIN = 1024 * 1024 * KIB;

export interface SnapshotEntry {
  /** Its place in the file, and its bytes there. */
  at: number;
  length: number;
  /** The same without what is too much of the extra data. */
  bytes: Buffer;
  /** Bytes of the extra data in `bytes`. */
  extraSize: number;
  l1Offset: number;
  l1Entries: number;
  /** It says nothing at all: zeroes past the end of the table. */
  blank: boolean;
  /** Fields that version 3 demands are missing. */
  incomplete: boolean;
  /** Bytes of extra data that are more than anybody reads; a repair leaves them out, as that of QEMU does. */
  tooMuch: number;
  /** Its L1 table cannot be where the entry says. */
  badTable: boolean;
}

export interface SnapshotTable {
  entries: SnapshotEntry[];
  /** Bytes. */
  length: number;
}

/** Reads the table and counts what is wrong with it, and the references to the table itself. */
export function checkSnapshotTable(report: CheckReport): SnapshotTable {
  const { header } = report;
  const table: SnapshotTable = { entries: [], length: 0 };
  for (let index = 0; index < header.snapshotCount; index++) {
    const entry = readEntry(report, header.snapshotsOffset + table.length);
    table.entries.push(entry);
    table.length += alignUp(entry.length, 8);
    if (table.length > TABLE_MAX) refuse(report, `it has more than ${TABLE_MAX} bytes`);
    const { incomplete, extraSize, tooMuch } = entry;
    if (!incomplete && tooMuch === 0) continue;
    report.snapshotErrors++;
    const what = incomplete ? 'is incomplete' : `has too much extra metadata (${extraSize + tooMuch} > ${EXTRA_MAX})`;
    report.messages.add(`ERROR snapshot table entry ${index} ${what}`);
  }
  return table;
}

/** The L1 tables of all snapshots that can be followed. Counts those that cannot. */
export function snapshotL1Tables(report: CheckReport, table: SnapshotTable): L1Table[] {
  const { clusterSize, l1Entries } = report.header;
  const tables: L1Table[] = [];
  const most = Math.max(L1_BYTES_MIN, report.storage.allocatedBytes() * L1_BYTES_FACTOR);
  let total = l1Entries * 8;
  for (const entry of table.entries) {
    const bad = (what: string) => {
      entry.badTable = true;
      report.snapshotErrors++;
      if (what !== '') report.messages.add(`ERROR ${snapshotName(entry)} ${what}; snapshot table entry corrupted`);
    };
    if (entry.l1Offset % clusterSize !== 0) {
      bad(`l1_offset=0x${entry.l1Offset.toString(16)}: L1 table is not cluster aligned`);
    } else if (entry.l1Entries * 8 > L1_MAX_BYTES) {
      bad(`l1_size=0x${entry.l1Entries.toString(16)}: L1 table is too large`);
    } else if (!report.addRange(entry.l1Offset, entry.l1Entries * 8)) {
      bad('');
    } else {
      total += entry.l1Entries * 8;
      if (total > most) refuse(report, 'the L1 tables that it names have more bytes than the file: they overlap');
      tables.push({ offset: entry.l1Offset, entries: entry.l1Entries, active: false });
    }
  }
  if (!report.addRange(report.header.snapshotsOffset, table.length)) report.snapshotErrors++;
  return tables;
}

function readEntry(report: CheckReport, at: number): SnapshotEntry {
  const fixed = Buffer.alloc(ENTRY_BYTES);
  report.storage.read(at, fixed, 0, ENTRY_BYTES);
  const extraSize = Math.min(fixed.readUInt32BE(36), EXTRA_MAX);
  const tooMuch = fixed.readUInt32BE(36) - extraSize;
  const idSize = fixed.readUInt16BE(12);
  const nameSize = fixed.readUInt16BE(14);
  const bytes = Buffer.alloc(ENTRY_BYTES + extraSize + idSize + nameSize);
  const names = ENTRY_BYTES + extraSize;
  report.storage.read(at, bytes, 0, names);
  report.storage.read(at + names + tooMuch, bytes, names, idSize + nameSize);
  return {
    at,
    length: bytes.length + tooMuch,
    bytes,
    extraSize,
    // Inexact above 2^53, where it is past the end of every file.
    l1Offset: Number(fixed.readBigUInt64BE(0)),
    l1Entries: fixed.readUInt32BE(8),
    blank: fixed.every((byte) => byte === 0),
    tooMuch,
    incomplete: report.header.version === 3 && extraSize < NEEDED_EXTRA_BYTES,
    badTable: false,
  };
}

function snapshotName({ bytes, extraSize }: SnapshotEntry): string {
  const idSize = bytes.readUInt16BE(12);
  const idAt = ENTRY_BYTES + extraSize;
  // Untrusted text on its way to a terminal.
  const text = (from: number, to: number) => bytes.toString('utf8', from, to).replace(/[^\x20-\x7e]/g, '?');
  return `snapshot ${text(idAt, idAt + idSize)} (${text(idAt + idSize, bytes.length)})`;
}

function refuse(report: CheckReport, problem: string): never {
  const { path } = report.storage;
  throw new BlockError('CORRUPT_IMAGE', `Cannot check the snapshot table of qcow2 image "${path}": ${problem}`, {
    path,
  });
}
