/** The internal snapshots of an open qcow2 image: this thread's copy of their table, and how it changes. */
import type { ImageState } from '../../shared/image-state';
import type { TableCache } from '../../shared/table-cache';
import type { Storage } from '../../storage/storage';
import type { OpenedSnapshot, SnapshotDriver, SnapshotEngine, SnapshotInfo } from '../snapshots';
import type { Qcow2Header } from './layout';
import { Qcow2SnapshotDriver, vmStateOffset } from './snapshot-driver';
import { type Qcow2Snapshot, readSnapshotTable } from './snapshot-table';
import type { Qcow2State } from './state';

export class Qcow2Snapshots implements SnapshotDriver {
  private known: { generation: number; snapshots: readonly Qcow2Snapshot[] } | undefined;

  constructor(
    private readonly header: Qcow2Header,
    private readonly storage: Storage,
    private readonly state: ImageState,
    private readonly own: Qcow2State,
    private readonly cache: TableCache,
    private readonly imageId: number,
  ) {}

  list(): SnapshotInfo[] {
    return this.current().map(infoOf);
  }

  open(id: string): OpenedSnapshot | undefined {
    const { header, storage, state, cache, imageId } = this;
    const snapshot = this.current().find((candidate) => candidate.id === id);
    if (snapshot === undefined) return undefined;
    return {
      info: infoOf(snapshot),
      driver: new Qcow2SnapshotDriver(header, snapshot, storage, storage, state, cache, imageId),
      vmStateOffset: vmStateOffset(header, snapshot),
      exists: () => this.current().some((candidate) => isSame(candidate, snapshot)),
    };
  }

  take(_name: string, _engine: SnapshotEngine): SnapshotInfo {
    throw new Error('not yet');
  }

  remove(_id: string, _engine: SnapshotEngine): void {
    throw new Error('not yet');
  }

  rename(_id: string, _name: string): void {
    throw new Error('not yet');
  }

  revert(_id: string, _engine: SnapshotEngine): void {
    throw new Error('not yet');
  }

  /** The table as it is now; read from the file when it has changed since this thread read it. */
  private current(): readonly Qcow2Snapshot[] {
    const { state, own } = this;
    if (this.known?.generation === state.snapshotGeneration) return this.known.snapshots;
    state.lock.lockShared();
    let generation: number;
    let header: Qcow2Header;
    try {
      generation = state.snapshotGeneration;
      header = own.current(this.header, { dirty: false, virtualSize: state.virtualSize });
    } finally {
      state.lock.unlockShared();
    }
    const snapshots = readSnapshotTable(this.storage, header);
    this.known = { generation, snapshots };
    return snapshots;
  }
}

/** Ids and places are used again: what tells one snapshot from a later one is all of it together. Names may change. */
function isSame(a: Qcow2Snapshot, b: Qcow2Snapshot): boolean {
  return (
    a.id === b.id &&
    a.l1Offset === b.l1Offset &&
    a.dateSeconds === b.dateSeconds &&
    a.dateNanoseconds === b.dateNanoseconds
  );
}

function infoOf(snapshot: Qcow2Snapshot): SnapshotInfo {
  return {
    id: snapshot.id,
    name: snapshot.name,
    vmStateSize: snapshot.vmStateSize,
    dateSec: snapshot.dateSeconds,
    dateNsec: snapshot.dateNanoseconds,
    // Exact up to 2^53: more than a hundred days.
    vmClockNsec: Number(snapshot.vmClock),
    ...(snapshot.icount === undefined ? {} : { icount: Number(snapshot.icount) }),
    virtualSize: snapshot.virtualSize,
  };
}
