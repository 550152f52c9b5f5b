/**
 * Repair of a qcow2 image. The order of writes, each step safe on disk before the next; a crash between two of them leaves
 * an image that is no worse than before, and the next repair goes on from there:
 *
 *  1. bits of extensions that do not survive (bitmaps with damaged tables) are cleared: those clusters become leaks
 *  2. entries that name no possible place are cleared; each is one write inside one sector, never torn
 *  3. counts that are too low are raised, in place, or in a new refcount structure that one write of the header switches to:
 *     before anything can be handed out again, everything in use is counted
 *  4. copied flags that must not be set are cleared: from now on a shared cluster is not written in place
 *  5. counts that are too high are lowered, then the clusters that nobody uses any more are punched
 *  6. copied flags that are missing are set
 *  7. only when all is well, the dirty and corrupt bits go
 *
 * `leaks` does 4 to 7 alone, and only if nothing else is wrong: a leaked cluster may be what a damaged entry should name.
 */
import { CheckMessages } from '../check-messages';
import type { RepairMode } from '../format';
import { checkCopiedFlags, type FlagRepair } from './check-copied';
import { type CheckReport, hexOf } from './check-report';
import { type EntryRepair, writeEntry } from './check-tables';
import { autoclearBits, encodeQcow2Fields } from './header';
import type { Qcow2Header } from './layout';
import { rebuildRefcounts } from './rebuild';
import { lowerCounts, raiseCounts } from './repair-counts';
import { dropSnapshotTables, repairedSnapshotTable } from './repair-snapshots';
import { type Qcow2Scan, scanQcow2 } from './scan';

/** Clearing entries may show others that were hidden behind them; after this many rounds what is left is reported. */
const ENTRY_ROUNDS = 3;

export interface Repaired {
  /** How the image is now. */
  scan: Qcow2Scan;
  corruptions: number;
  leaks: number;
}

/** @param messages gets a line for each thing that is repaired, and what remains */
export function repairQcow2(first: Qcow2Scan, mode: RepairMode, messages: CheckMessages): Repaired {
  const nothing = { scan: first, corruptions: 0, leaks: 0 };
  // With a table unread nobody knows what is unused, or wrong.
  if (first.report.readErrors > 0) return nothing;
  const repair = new Repair(first, messages);
  if (mode === 'all') {
    repair.dropBitmaps();
    repair.clearEntries();
    repair.raise();
  }
  if (!soundBut(repair.scan.report, ['copiedErrors'])) {
    if (mode === 'leaks') messages.add('ERROR the image is corrupt: nothing is freed, repair it with -r all');
    else repair.clearFlags();
  } else repair.freeLeaks();
  return repair.finish();
}

type ErrorCount = 'entryErrors' | 'snapshotErrors' | 'bitmapErrors' | 'structureErrors' | 'tooLow' | 'copiedErrors';

/** Is nothing wrong but what is named? Leaks do not count. */
function soundBut(report: CheckReport, allowed: ErrorCount[]): boolean {
  const rest = allowed.reduce((sum, name) => sum - report[name], report.corruptions);
  return rest === 0 && report.checkErrors === 0;
}

class Repair {
  corruptions = 0;
  leaks = 0;
  private readonly header: Qcow2Header;

  constructor(
    public scan: Qcow2Scan,
    private readonly messages: CheckMessages,
  ) {
    this.header = { ...scan.report.header };
  }

  /** Step 1. Everybody then takes the bitmaps for inconsistent, and asks for a full backup instead of a wrong one. */
  dropBitmaps(): void {
    const { bitmapErrors } = this.scan.report;
    const { header } = this;
    if (bitmapErrors > 0) {
      delete header.bitmaps;
      this.messages.add('Repairing bitmaps: all of them are inconsistent now');
      this.corruptions += bitmapErrors;
    }
    // Unknown bits go too: whoever owns them must see that somebody wrote.
    const kept = autoclearBits(header);
    if (kept === header.autoclear) return;
    header.autoclear = kept;
    this.#writeHeader();
    this.#rescan();
  }

  /** Step 2. */
  clearEntries(): void {
    if (this.scan.report.snapshotErrors > 0) {
      const dropped = dropSnapshotTables(this.scan, this.messages);
      this.corruptions += dropped;
      if (dropped > 0) this.#rescan();
    }
    for (let round = 0; round < ENTRY_ROUNDS && this.scan.report.entryErrors > 0; round++) {
      const cleared = this.#clearRound();
      if (cleared === 0) return;
      this.corruptions += cleared;
      this.scan.report.storage.sync('check-repair');
      this.#rescan();
    }
  }

  #clearRound(): number {
    const { report } = this.scan;
    const { header, storage } = report;
    let cleared = 0;
    const onRepair: EntryRepair = (at, entry, table) => {
      if (!mayWrite(this.scan, table.level, table.offset)) return;
      const bytes = writeEntry(entry, table.level === 'l2' && header.extendedL2);
      storage.write(at, bytes, 0, bytes.length, 'check-repair');
      this.messages.add(`Repairing ${table.level.toUpperCase()} entry at ${hexOf(at)}`);
      cleared++;
    };
    scanQcow2(this.header, storage, new CheckMessages(), onRepair);
    return cleared;
  }

  /** Step 3. */
  raise(): void {
    const { report } = this.scan;
    const snapshots = repairedSnapshotTable(this.scan);
    if (report.structureErrors > 0 || report.blockMissing || snapshots !== undefined) {
      this.messages.add('Rebuilding refcount structure');
      this.corruptions +=
        report.structureErrors + report.tooLow + (snapshots === undefined ? 0 : report.snapshotErrors);
      this.leaks += report.leaks;
      rebuildRefcounts(this.scan, this.header, snapshots);
      this.#rescan();
    } else if (report.tooLow > 0) {
      this.corruptions += raiseCounts(this.scan, this.messages);
      this.#rescan();
    }
  }

  /** Step 4 alone, in an image in which something stays wrong. */
  clearFlags(): void {
    this.#repairFlags(false, (cluster) =>
      Math.max(this.scan.report.wanted(cluster), this.scan.structure.countOf(cluster)),
    );
  }

  /** Steps 4 to 6. */
  freeLeaks(): void {
    const { report } = this.scan;
    const wanted = (cluster: number) => report.wanted(cluster);
    // Every entry is possible: a table that shares its cluster with something else is a table all the same.
    if (report.copiedErrors > 0) this.#repairFlags(false, wanted, true);
    if (report.leaks > 0) this.leaks += lowerCounts(this.scan, this.messages);
    if (report.copiedErrors > 0 || report.leaks > 0) this.#repairFlags(true, wanted, true);
  }

  /**
   * @param countOf the counts as they will be
   * @param sound no entry of any table is impossible
   */
  #repairFlags(set: boolean, countOf: (cluster: number) => number, sound = false): void {
    const { report, l1Tables } = this.scan;
    const { header, storage } = report;
    let changed = 0;
    const onWrong: FlagRepair = (at, entry, toSet, table) => {
      const level = typeof table === 'number' ? 'l2' : 'l1';
      const offset = typeof table === 'number' ? table : table.offset;
      if (toSet !== set || (!sound && !mayWrite(this.scan, level, offset))) return;
      const bytes = writeEntry(entry, level === 'l2' && header.extendedL2);
      storage.write(at, bytes, 0, bytes.length, 'check-repair');
      this.messages.add(`Repairing OFLAG_COPIED ${level === 'l2' ? 'data' : 'L2'} cluster: entry at ${hexOf(at)}`);
      changed++;
    };
    checkCopiedFlags(report, { countOf }, l1Tables[0], onWrong);
    this.corruptions += changed;
    if (changed > 0) storage.sync('check-repair');
  }

  /** Step 7, and a last look. */
  finish(): Repaired {
    const remaining = new CheckMessages();
    this.scan = scanQcow2(this.header, this.scan.report.storage, remaining);
    const { report } = this.scan;
    if (report.corruptions === 0 && report.checkErrors === 0) {
      if (this.header.dirty || this.header.corrupt) {
        this.header.dirty = false;
        this.header.corrupt = false;
        this.#writeHeader();
      }
    }
    if (this.corruptions + this.leaks > 0) for (const line of remaining.lines()) this.messages.add(line);
    return { scan: this.scan, corruptions: this.corruptions, leaks: this.leaks };
  }

  #rescan(): void {
    this.scan = scanQcow2(this.header, this.scan.report.storage, new CheckMessages());
  }

  /** The fields, safe on disk before and after: what the header says must be true whenever a crash happens. */
  #writeHeader(): void {
    const { storage } = this.scan.report;
    storage.sync('check-repair');
    const bytes = encodeQcow2Fields(this.header);
    storage.write(0, bytes, 0, bytes.length, 'header-update');
    storage.sync('check-repair');
  }
}

/** A table that shares clusters with something else may be no table at all but a guest's data: it is not written to. */
function mayWrite({ report, l1Tables }: Qcow2Scan, level: 'l1' | 'l2', offset: number): boolean {
  if (level === 'l2') {
    const cluster = offset / report.header.clusterSize;
    return report.counts.get(cluster) === report.tableRefs.get(cluster);
  }
  const table = l1Tables.find((candidate) => candidate.offset === offset);
  return table !== undefined && report.usedOnce(offset, table.entries * 8);
}
