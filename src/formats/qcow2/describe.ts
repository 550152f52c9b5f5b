/** What `info` shows of a qcow2 image beside what all formats have; keys, values and order as `qemu-img info --output=json`. */
import type { Storage } from '../../storage/storage';
import type { FormatDescription, InfoValue, SnapshotInfo } from '../format';
import { readBitmaps } from './bitmap-codec';
import { hasLazyRefcounts } from './header';
import type { Qcow2Header } from './layout';
import { type Qcow2Snapshot, readSnapshotTable } from './snapshot-table';

const SECOND = 1_000_000_000n;

export function describeQcow2(header: Qcow2Header, storage: Storage): FormatDescription {
  const snapshots = readSnapshotTable(storage, header).map(snapshotInfo);
  return {
    ...(snapshots.length === 0 ? {} : { snapshots }),
    specific: { type: 'qcow2', data: specific(header, storage) },
  };
}

function snapshotInfo(snapshot: Qcow2Snapshot): SnapshotInfo {
  return {
    // Beyond 2^53 only in images that are not honest: shown as near as numbers can.
    ...(snapshot.icount === undefined ? {} : { icount: Number(snapshot.icount) }),
    'vm-clock-nsec': Number(snapshot.vmClock % SECOND),
    name: snapshot.name,
    'date-sec': snapshot.dateSeconds,
    'date-nsec': snapshot.dateNanoseconds,
    'vm-clock-sec': Number(snapshot.vmClock / SECOND),
    id: snapshot.id,
    'vm-state-size': snapshot.vmStateSize,
  };
}

function specific(header: Qcow2Header, storage: Storage): { [key: string]: InfoValue } {
  const common = { 'compression-type': header.compressionType };
  const refcountBits = 2 ** header.refcountOrder;
  if (header.version === 2) return { compat: '0.10', ...common, 'refcount-bits': refcountBits };
  const bitmaps = header.bitmaps === undefined ? undefined : readBitmaps(storage, header.bitmaps);
  return {
    compat: '1.1',
    ...common,
    'lazy-refcounts': hasLazyRefcounts(header),
    ...(bitmaps === undefined
      ? {}
      : { bitmaps: bitmaps.map(({ flags, name, granularity }) => ({ flags, name, granularity })) }),
    'refcount-bits': refcountBits,
    ...(header.dataFile === undefined
      ? {}
      : { 'data-file': header.dataFile.name, 'data-file-raw': header.rawDataFile }),
    corrupt: header.corrupt,
    'extended-l2': header.extendedL2,
  };
}
