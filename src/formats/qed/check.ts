/**
 * Consistency check of a QED image, and repair. Works on the storage alone: nothing else has the image open.
 *
 * QED has no reference counts. A cluster of the file is used when the header, the L1 table, an L2 table or an L2 entry
 * says so; used twice is a corruption (two guest clusters, or a table and a guest cluster, would overwrite each other), used
 * by nobody is a leak (waste of space, no harm). Only whole clusters count: QEMU and we ignore a trailing part.
 *
 * A cluster that nobody uses and that is a hole of the host file, with used clusters behind it, wastes nothing: that is how a
 * freed cluster in the middle of a file looks, and it is not counted. At the end of the file it is counted, because the
 * file can be cut there. So every leak that is reported can be repaired, and none is reported after the repair.
 *
 * Memory: one bit for each cluster of the file (bounded), and two slices of tables.
 */
import { BlockError } from '../../errors';
import type { Storage } from '../../storage/storage';
import { divCeil, MIB } from '../../units';
import { CheckMessages } from '../check-messages';
import type { CheckResult, RepairMode } from '../format';
import { ClusterBitmap } from './cluster-bitmap';
import { encodeQedHeader, QED_ENTRY_BYTES, QED_HEADER_BYTES, type QedHeader } from './header';
import { QedScan } from './scan';

/** Bytes of bitmap; ours. Enough for files of 8 TiB with 4 KiB clusters, 128 TiB with 64 KiB. */
const BITMAP_LIMIT = 256 * MIB;

/**
 * Checks the image and, when asked, repairs it.
 *
 * `leaks` gives leaked clusters back to the host: cut off at the end of the file, punched elsewhere. `all` first sets entries
 * to "not allocated" that point to no possible place; the guest data behind them was lost already. Clusters that are used twice
 * are reported and left alone: nobody can tell whose they are. While such a corruption remains, leaks are not freed either, for
 * they may be what the wrong entry should have pointed to.
 *
 * @param storage writable when `repair` is not `none`, and not in use by anybody else
 */
export function checkQed(header: QedHeader, storage: Storage, repair: RepairMode): CheckResult {
  const { path } = storage;
  if (repair !== 'none' && storage.readOnly) {
    throw new BlockError('READ_ONLY', `Cannot repair QED image "${path}": it is open read-only`, { path });
  }
  const messages = new CheckMessages();
  let scan = scanImage(header, storage, messages);
  let corruptionsFixed = 0;
  let leaksFixed = 0;

  // Order: bits of extensions that we would break are cleared before anything changes (they describe the old tables); wrong
  // entries are cleared and safe before a cluster is freed; need-check goes last. A crash in between leaves an image that the
  // next check repairs in the same way.
  if (repair !== 'none' && header.autoclearFeatures !== 0n) writeHeader({ ...header, autoclearFeatures: 0n }, storage);
  if (repair === 'all' && scan.invalidEntries > 0 && scan.complete) {
    corruptionsFixed = clearInvalidEntries(header, storage, scan);
    if (corruptionsFixed > 0) scan = scanImage(header, storage, new CheckMessages());
  }
  const sound = scan.complete && scan.corruptions === 0;
  if (repair !== 'none' && sound && scan.leaks > 0) {
    leaksFixed = scan.leaks;
    freeLeaks(header, storage, scan);
    scan = scanImage(header, storage, new CheckMessages());
    leaksFixed -= scan.leaks;
  }
  if (repair !== 'none' && sound && header.dirty) {
    writeHeader({ ...header, dirty: false, autoclearFeatures: 0n }, storage);
  }
  return {
    checkErrors: scan.readErrors,
    corruptions: scan.corruptions,
    leaks: scan.leaks,
    corruptionsFixed,
    leaksFixed,
    totalClusters: divCeil(header.virtualSize, header.clusterSize),
    allocatedClusters: scan.allocatedClusters,
    fragmentedClusters: scan.fragmentedClusters,
    compressedClusters: 0,
    // qemu-img reports none for QED: 0 means that the field is left out.
    imageEndOffset: 0,
    messages: messages.lines(),
  };
}

function scanImage(header: QedHeader, storage: Storage, messages: CheckMessages): QedScan {
  const clusters = Math.floor(storage.size() / header.clusterSize);
  if (clusters > BITMAP_LIMIT * 8) {
    const limit = `${BITMAP_LIMIT / MIB} MiB of memory, enough for ${BITMAP_LIMIT * 8} clusters`;
    const problem = `the file has ${clusters} clusters, the check is limited to ${limit}`;
    throw new BlockError('LIMIT_EXCEEDED', `Cannot check QED image "${storage.path}": ${problem}`, {
      path: storage.path,
    });
  }
  const scan = new QedScan(header, storage, new ClusterBitmap(clusters), messages);
  scan.run();
  return scan;
}

/** Sets every entry that points to no possible place to "not allocated". Each is one write inside one sector: never torn. */
function clearInvalidEntries(header: QedHeader, storage: Storage, found: QedScan): number {
  const zero = new Uint8Array(QED_ENTRY_BYTES);
  let cleared = 0;
  const walk = new QedScan(header, storage, new ClusterBitmap(found.used.length), new CheckMessages());
  walk.onInvalidEntry = (entryOffset, table) => {
    // A table that shares clusters with something else may be no table at all but a guest's data: it is not written to.
    if (!found.mayRepairTable(table)) return;
    storage.write(entryOffset, zero, 0, zero.length, 'check-repair');
    cleared++;
  };
  walk.run();
  if (cleared > 0) storage.sync('check-repair');
  return cleared;
}

/** Nothing points to these clusters (the entries are safe on disk since the scan), so they may go in any order. */
function freeLeaks(header: QedHeader, storage: Storage, scan: QedScan): void {
  const end = scan.used.end() * header.clusterSize;
  for (const run of scan.leakedRuns()) {
    if (run.offset < end) storage.punch(run.offset, run.length, 'check-repair');
  }
  if (storage.size() > end && scan.leaksAtEnd > 0) storage.truncate(end, 'check-repair');
  storage.sync('check-repair');
}

/** The 64 bytes of fields, safe on disk before and after: what the header says must be true whenever a crash happens. */
function writeHeader(header: QedHeader, storage: Storage): void {
  storage.sync('check-repair');
  storage.write(0, encodeQedHeader(header), 0, QED_HEADER_BYTES, 'header-update');
  storage.sync('check-repair');
}
