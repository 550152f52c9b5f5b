/** Repair of the snapshot table. */

import { alignUp } from '../../units';
import type { CheckMessages } from '../check-messages';
import { NEEDED_EXTRA_BYTES, type SnapshotEntry } from './check-snapshots';
import type { Qcow2Scan } from './scan';

const ENTRY_BYTES = 40;

/**
 * A snapshot whose L1 table is at no possible place keeps its name and gets an empty table: what it held cannot be found.
 * Length first, place second: an entry of length 0 is not followed, wherever it points.
 *
 * @returns how many there were
 */
export function dropSnapshotTables({ report, snapshots }: Qcow2Scan, messages: CheckMessages): number {
  const { storage, header } = report;
  const bad = snapshots.entries.filter((entry) => entry.badTable);
  // A table that shares clusters with something else may be no table at all.
  if (bad.length === 0 || !report.usedOnce(header.snapshotsOffset, snapshots.length)) return 0;
  const zero = Buffer.alloc(8);
  for (const { at } of bad) {
    storage.write(at + 8, zero, 0, 4, 'snapshot-update');
    storage.sync('check-repair');
    storage.write(at, zero, 0, 8, 'snapshot-update');
    messages.add(`Repairing snapshot table entry at 0x${at.toString(16)}: its L1 table cannot be found`);
  }
  storage.sync('check-repair');
  return bad.length;
}

/**
 * The table with the fields that version 3 demands, without entries that say nothing and without too much extra data.
 * @returns undefined when it is right as it is
 */
export function repairedSnapshotTable({ report, snapshots }: Qcow2Scan): { count: number; bytes: Buffer } | undefined {
  if (!snapshots.entries.some(({ incomplete, tooMuch }) => incomplete || tooMuch > 0)) return;
  const kept = snapshots.entries.filter((entry) => !entry.blank);
  return { count: kept.length, bytes: Buffer.concat(kept.map((entry) => completed(entry, report.header.virtualSize))) };
}

function completed({ bytes, extraSize }: SnapshotEntry, virtualSize: number): Buffer {
  const fixed = Buffer.from(bytes.subarray(0, ENTRY_BYTES));
  const extra = Buffer.alloc(Math.max(extraSize, NEEDED_EXTRA_BYTES));
  bytes.copy(extra, 0, ENTRY_BYTES, ENTRY_BYTES + extraSize);
  if (extraSize < 8) extra.writeBigUInt64BE(BigInt(fixed.readUInt32BE(32)), 0);
  if (extraSize < 16) extra.writeBigUInt64BE(BigInt(virtualSize), 8);
  fixed.writeUInt32BE(extra.length, 36);
  const entry = Buffer.concat([fixed, extra, bytes.subarray(ENTRY_BYTES + extraSize)]);
  return Buffer.concat([entry, Buffer.alloc(alignUp(entry.length, 8) - entry.length)]);
}
