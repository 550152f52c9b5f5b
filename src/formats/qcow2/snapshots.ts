/** The internal snapshots of an open qcow2 image: this thread's copy of their table, and how it changes. */
import { BlockError } from '../../errors';
import type { TableCache } from '../../shared/table-cache';
import type { OpenedSnapshot, SnapshotDriver } from '../driver';
import type { SnapshotEngine, SnapshotInfo } from '../snapshots';
import type { Qcow2Header } from './layout';
import { type KnownSnapshots, SnapshotChanges, type SnapshotParts } from './snapshot-changes';
import { Qcow2SnapshotDriver, vmStateOffset } from './snapshot-driver';
import { type Qcow2Snapshot, readSnapshots } from './snapshot-table';

export class Qcow2Snapshots implements SnapshotDriver {
  private known: (KnownSnapshots & { generation: number }) | undefined;

  constructor(
    private readonly parts: SnapshotParts,
    private readonly cache: TableCache,
    private readonly imageId: number,
  ) {}

  list(): SnapshotInfo[] {
    return this.current().snapshots.map(infoOf);
  }

  open(id: string): OpenedSnapshot | undefined {
    const { cache, imageId } = this;
    const { header, storage, state } = this.parts;
    const snapshot = this.find(id);
    if (snapshot === undefined) return undefined;
    this.refuseUnreadable(snapshot);
    // Every read asks: the list is searched once for each of its states.
    let searched: KnownSnapshots | undefined;
    let found = false;
    return {
      info: infoOf(snapshot),
      driver: new Qcow2SnapshotDriver(header, snapshot, storage, storage, state, cache, imageId),
      vmStateOffset: vmStateOffset(header, snapshot),
      exists: () => {
        const current = this.current();
        if (current !== searched) {
          found = current.snapshots.some((candidate) => isSame(candidate, snapshot));
          searched = current;
        }
        return found;
      },
    };
  }

  take(name: string, engine: SnapshotEngine): SnapshotInfo {
    return infoOf(this.changes(engine).take(name));
  }

  remove(id: string, engine: SnapshotEngine): void {
    const snapshot = this.existing(id);
    this.changes(engine).remove(snapshot);
  }

  rename(id: string, name: string, engine: SnapshotEngine): void {
    const snapshot = this.existing(id);
    this.changes(engine).rename(snapshot, name);
  }

  revert(id: string, engine: SnapshotEngine): void {
    const snapshot = this.existing(id);
    this.refuseUnreadable(snapshot);
    this.changes(engine).revert(snapshot);
  }

  private changes(engine: SnapshotEngine): SnapshotChanges {
    return new SnapshotChanges(this.parts, this.current(), engine);
  }

  private find(id: string): Qcow2Snapshot | undefined {
    return this.current().snapshots.find((candidate) => candidate.id === id);
  }

  private existing(id: string): Qcow2Snapshot {
    const snapshot = this.find(id);
    if (snapshot !== undefined) return snapshot;
    const { path } = this.parts.storage;
    throw new BlockError('NOT_FOUND', `Cannot find snapshot "${id}" of "${path}": it does not exist`, { path });
  }

  private refuseUnreadable({ id, unreadable }: Qcow2Snapshot): void {
    if (unreadable === undefined) return;
    const { path } = this.parts.storage;
    throw new BlockError('LIMIT_EXCEEDED', `Cannot read snapshot "${id}" of "${path}": its ${unreadable}`, { path });
  }

  /** The table as it is now; read from the file when it has changed since this thread read it. */
  private current(): KnownSnapshots {
    const { state, own, storage } = this.parts;
    if (this.known?.generation === state.snapshotGeneration) return this.known;
    state.lock.lockShared();
    let generation: number;
    let header: Qcow2Header;
    try {
      generation = state.snapshotGeneration;
      header = own.current(this.parts.header, { dirty: false, virtualSize: state.virtualSize });
    } finally {
      state.lock.unlockShared();
    }
    this.known = { ...readSnapshots(storage, header, header), generation };
    return this.known;
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
