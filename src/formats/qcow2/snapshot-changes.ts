/**
 * Taking, deleting, renaming snapshots and reverting to them. The order of writes makes each of them "done" or "not done"
 * whenever the power fails, with leaks at the most:
 *
 *   take    dirty bit; durable; counts up; durable; flags of the disk's tables cleared, copy of L1, new snapshot table; durable;
 *           header, without the bit; durable
 *   delete  new snapshot table; durable; header, with the dirty bit; durable; counts down; durable; flags that are true again;
 *           durable; header without the bit; durable
 *   revert  counts up; durable; new L1; durable; header; durable; counts of the old tables down
 *   rename  new snapshot table; durable; header; durable
 *
 * A count is never too low for what the tables on disk name. While the dirty bit is set, a flag may be missing where the count
 * is one, or set where a second reference leaks. No order avoids that, flags and counts lie apart; neither lets a write change
 * what a snapshot reads, and whoever opens the image for writing sees the bit and sets the flags right. Version 2 has no such
 * bit: there a check has to be asked for.
 */
import { BlockError } from '../../errors';
import { logOf } from '../../log';
import type { ImageState } from '../../shared/image-state';
import type { Storage } from '../../storage/storage';
import { alignUp, divCeil } from '../../units';
import type { SnapshotEngine } from '../snapshots';
import { markBitmapsOfOtherSize } from './bitmap-codec';
import { clearCopied } from './entry';
import type { Growth } from './growth';
import { l1EntriesFor, type Qcow2Header, SNAPSHOTS_MAX } from './layout';
import type { Refcounts } from './refcounts';
import { References } from './references';
import { encodeSnapshotTable, type Qcow2Snapshot, SNAPSHOT_TABLE_MAX } from './snapshot-table';
import type { Qcow2State } from './state';
import { TableTree } from './table-tree';

const log = logOf('qcow2');
/** Bytes: what QEMU's tools can have as a name, and a directory's entry too. */
const NAME_MAX_BYTES = 255;
/** Extra data of new entries: sizes of VM state and disk, instruction count. */
const EXTRA_BYTES = 24;

/** The parts of a driver that changes of the list need. */
export interface SnapshotParts {
  readonly header: Qcow2Header;
  readonly storage: Storage;
  readonly state: ImageState;
  readonly own: Qcow2State;
  readonly refcounts: Refcounts;
  readonly growth: Growth;
}

/** The snapshots as they are now, and the bytes that their table takes in the file. */
export interface KnownSnapshots {
  snapshots: readonly Qcow2Snapshot[];
  length: number;
}

export class SnapshotChanges {
  private readonly references: References;

  constructor(
    private readonly parts: SnapshotParts,
    private readonly known: KnownSnapshots,
    private readonly engine: SnapshotEngine,
  ) {
    const { header, storage, state, refcounts } = parts;
    this.references = new References(header, storage, state, refcounts, engine);
  }

  take(name: string): Qcow2Snapshot {
    const { own, storage, state } = this.parts;
    const snapshot = this.newSnapshot(name);
    const active = this.activeTree();
    const areas = new Areas(this.parts, this.engine);
    let counted = false;
    let flagged = false;
    try {
      snapshot.l1Offset = areas.add(active.l1.length);
      const table = this.tableWith([...this.known.snapshots, snapshot], areas);
      this.markDirty(true);
      this.references.add(active);
      counted = true;
      this.engine.flush();
      flagged = true;
      this.references.clearFlags(active);
      const copy = Buffer.from(active.l1);
      clearCopied(copy, 8);
      if (copy.length > 0) storage.write(snapshot.l1Offset, copy, 0, copy.length, 'snapshot-update');
      this.publishTable(table);
    } catch (error) {
      // After a failed sync nobody knows what the file says, and nothing is written any more.
      if (state.failed) throw error;
      if (counted) this.references.takeBack(active);
      const right = !flagged || this.refreshFlags();
      areas.giveBack();
      if (right) this.settle();
      throw error;
    }
    log('%s: snapshot %s taken, L1 at %d, %d entries', storage.path, snapshot.id, snapshot.l1Offset, own.l1Entries);
    return snapshot;
  }

  remove(snapshot: Qcow2Snapshot): void {
    const { state } = this.parts;
    const tree = this.treeOf(snapshot.l1Offset, snapshot.l1Entries);
    this.replaceTable(
      this.known.snapshots.filter((other) => other !== snapshot),
      this.hasDirtyBit,
    );
    // It is gone. What fails from here on leaks.
    let right = true;
    try {
      const single = this.references.release(tree);
      this.engine.flush();
      if (single) right = this.refreshFlags();
    } catch (error) {
      log('%s: what snapshot %s held is not all free: %s', this.parts.storage.path, snapshot.id, error);
      right = !state.failed && this.refreshFlags();
    }
    if (right) this.settle();
  }

  rename(snapshot: Qcow2Snapshot, name: string): void {
    const renamed = { ...snapshot, name, nameBytes: nameBytes(name, this.parts.storage.path) };
    this.replaceTable(this.known.snapshots.map((other) => (other === snapshot ? renamed : other)));
  }

  revert(snapshot: Qcow2Snapshot): void {
    const { own, state, storage } = this.parts;
    const { clusterSize, extendedL2, bitmaps } = this.parts.header;
    this.refuseOtherSize(snapshot);
    if (bitmaps !== undefined) markBitmapsOfOtherSize(storage, bitmaps, clusterSize, snapshot.virtualSize);
    // Behind the disk lies the VM state, which the disk does not need.
    const entries = Math.max(1, l1EntriesFor(snapshot.virtualSize, clusterSize, extendedL2));
    const tree = this.treeOf(snapshot.l1Offset, Math.min(entries, snapshot.l1Entries));
    const old = this.activeTree();
    const areas = new Areas(this.parts, this.engine);
    let counted = false;
    try {
      const l1Offset = areas.add(entries * 8);
      this.references.add(tree);
      counted = true;
      this.engine.flush();
      const l1 = Buffer.alloc(alignUp(entries * 8, clusterSize));
      l1.set(tree.l1);
      clearCopied(l1, 8);
      storage.write(l1Offset, l1, 0, l1.length, 'l1-update');
      this.publish({ l1TableOffset: l1Offset, l1Entries: entries, virtualSize: snapshot.virtualSize }, () => {
        own.l1Offset = l1Offset;
        own.l1Entries = entries;
        state.virtualSize = snapshot.virtualSize;
      });
    } catch (error) {
      if (state.failed) throw error;
      if (counted) this.references.takeBack(tree);
      areas.giveBack();
      throw error;
    }
    this.references.release(old);
    log('%s: reverted to snapshot %s', storage.path, snapshot.id);
  }

  /** Writes another table and lets the header name it. @param dirty with the dirty bit, because more is to follow */
  private replaceTable(snapshots: readonly Qcow2Snapshot[], dirty = false): void {
    const areas = new Areas(this.parts, this.engine);
    try {
      const table = this.tableWith(snapshots, areas);
      // The count of the new place is durable before the header names it.
      this.engine.flush();
      this.publishTable(table, dirty);
    } catch (error) {
      if (!this.parts.state.failed) areas.giveBack();
      throw error;
    }
  }

  /** Takes a place for a table of these snapshots. */
  private tableWith(snapshots: readonly Qcow2Snapshot[], areas: Areas): NewTable {
    const { path } = this.parts.storage;
    const length = encodeSnapshotTable(snapshots).length;
    if (length > SNAPSHOT_TABLE_MAX) {
      throw new BlockError(
        'LIMIT_EXCEEDED',
        `Cannot write the snapshot table of qcow2 image "${path}": it would have ${length} bytes, at most ${SNAPSHOT_TABLE_MAX} are supported`,
        { path },
      );
    }
    return { snapshots, offset: areas.add(length), length };
  }

  private publishTable({ snapshots, offset, length }: NewTable, dirty = false): void {
    const { own, state, storage, growth, header } = this.parts;
    const old = { offset: own.snapshotsOffset, length: alignUp(this.known.length, header.clusterSize) };
    const bytes = encodeSnapshotTable(snapshots);
    if (length > 0) storage.write(offset, bytes, 0, length, 'snapshot-update');
    this.publish({ snapshotsOffset: offset, snapshotCount: snapshots.length, dirty }, () => {
      own.snapshotsOffset = offset;
      own.snapshotCount = snapshots.length;
      state.nextSnapshotGeneration();
      if (old.length > 0) growth.drop(old.offset, old.length);
    });
  }

  /** Lets the header, and then the memory, say so. */
  private publish(fields: Partial<Qcow2Header>, memory: () => void = () => {}): void {
    const { growth, state } = this.parts;
    state.metaMutex.with(() => {
      growth.publishHeader(fields);
      state.lock.withExclusive(memory);
    });
  }

  private newSnapshot(name: string): Qcow2Snapshot {
    const { own, state, storage } = this.parts;
    const { path } = storage;
    const { snapshots } = this.known;
    if (snapshots.length >= SNAPSHOTS_MAX) {
      throw new BlockError(
        'LIMIT_EXCEEDED',
        `Cannot take a snapshot of qcow2 image "${path}": it has ${snapshots.length}, at most ${SNAPSHOTS_MAX} are supported`,
        { path },
      );
    }
    // As QEMU counts them: one more than the largest number among the ids.
    const largest = snapshots.reduce(
      (most, { id }) => Math.max(most, /^\d{1,15}/.test(id) ? Number.parseInt(id, 10) : 0),
      0,
    );
    const id = String(largest + 1);
    const now = Date.now();
    return {
      id,
      name,
      idBytes: Buffer.from(id),
      nameBytes: nameBytes(name, path),
      l1Offset: 0,
      l1Entries: own.l1Entries,
      dateSeconds: Math.floor(now / 1000),
      dateNanoseconds: (now % 1000) * 1_000_000 + Number(process.hrtime.bigint() % 1_000_000n),
      vmClock: 0n,
      vmStateSize: 0,
      virtualSize: state.virtualSize,
      extra: new Uint8Array(EXTRA_BYTES),
    };
  }

  /** Version 2 lets nobody change the size of a disk with snapshots, whose entries need not say theirs. */
  private refuseOtherSize({ id, virtualSize }: Qcow2Snapshot): void {
    const { header, state, storage } = this.parts;
    if (virtualSize === state.virtualSize || header.version > 2) return;
    const { path } = storage;
    throw new BlockError(
      'UNSUPPORTED_FEATURE',
      `Cannot revert "${path}" to snapshot "${id}": its disk has ${virtualSize} bytes, and qcow2 version 2 images with snapshots keep their ${state.virtualSize}`,
      { path },
    );
  }

  private get hasDirtyBit(): boolean {
    return this.parts.header.version > 2;
  }

  /** The dirty bit is on disk, or not, on return; what was written before is durable. */
  private markDirty(dirty: boolean): void {
    if (this.hasDirtyBit) this.publish({ dirty });
  }

  /** Takes the bit off when counts and flags agree in the file. If that fails, the next one to open the image does it. */
  private settle(): void {
    if (!this.hasDirtyBit) return;
    try {
      this.engine.flush();
      this.markDirty(false);
    } catch (error) {
      log('%s: the dirty bit stays: %s', this.parts.storage.path, error);
    }
  }

  /** @returns whether all of them are right */
  private refreshFlags(): boolean {
    try {
      this.references.refreshFlags(this.activeTree());
      return true;
    } catch (error) {
      // Flags that are missing cost copies and nothing more.
      log('%s: copied flags are not all right: %s', this.parts.storage.path, error);
      return false;
    }
  }

  private activeTree(): TableTree {
    return this.treeOf(this.parts.own.l1Offset, this.parts.own.l1Entries);
  }

  private treeOf(l1Offset: number, l1Entries: number): TableTree {
    const { header, storage, state } = this.parts;
    return new TableTree(header, storage, state.fileEnd, l1Offset, l1Entries);
  }
}

interface NewTable {
  snapshots: readonly Qcow2Snapshot[];
  offset: number;
  length: number;
}

/** Places for what a change writes: all kept, or all given back. */
class Areas {
  private readonly taken: { offset: number; length: number }[] = [];

  constructor(
    private readonly parts: SnapshotParts,
    private readonly engine: SnapshotEngine,
  ) {}

  /** @returns host offset of whole clusters for `bytes`; 0 for none */
  add(bytes: number): number {
    const { growth, state, header } = this.parts;
    const clusters = divCeil(bytes, header.clusterSize);
    if (clusters === 0) return 0;
    for (let attempt = 0; ; attempt++) {
      const offset = state.metaMutex.with(() => growth.takeArea(clusters));
      if (typeof offset === 'object') {
        this.engine.load(offset, attempt);
        continue;
      }
      this.taken.push({ offset, length: clusters * header.clusterSize });
      return offset;
    }
  }

  giveBack(): void {
    const { growth, state } = this.parts;
    state.lock.withExclusive(() => {
      for (const { offset, length } of this.taken) growth.drop(offset, length);
    });
  }
}

function nameBytes(name: string, path: string): Uint8Array {
  const bytes = Buffer.from(name, 'utf8');
  if (bytes.length <= NAME_MAX_BYTES) return bytes;
  throw new BlockError(
    'LIMIT_EXCEEDED',
    `Cannot name a snapshot of "${path}" so: the name has ${bytes.length} bytes, at most ${NAME_MAX_BYTES} are allowed`,
    { path },
  );
}
