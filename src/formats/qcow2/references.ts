/**
 * Counting what whole trees of tables refer to, and the copied flags that follow from the counts. Called while no request is
 * in flight and no table differs from the file. Counts change in memory, as everywhere; flags change in the file, sector by
 * sector, and the cache forgets those tables: no cache must hold all tables of an image at once.
 */
import type { BlockError } from '../../errors';
import { logOf } from '../../log';
import type { ImageState } from '../../shared/image-state';
import type { TableSlice } from '../../shared/table-cache';
import type { Storage, StorageEvent } from '../../storage/storage';
import type { SnapshotEngine } from '../snapshots';
import { isCompressed, isCopied, offsetOf, withCopied } from './entry';
import type { Qcow2Header } from './layout';
import type { Refcounts } from './refcounts';
import type { ClusterRun, TableTree } from './table-tree';

const log = logOf('qcow2');
const SECTOR = 512;

/** Is the flag of an entry that names this cluster to be set? Or the slice to load first. */
type CopiedOf = (cluster: number) => boolean | TableSlice;

export class References {
  constructor(
    private readonly header: Qcow2Header,
    private readonly storage: Storage,
    private readonly state: ImageState,
    private readonly refcounts: Refcounts,
    private readonly engine: SnapshotEngine,
  ) {}

  /** One reference more for everything that the tree names, or an error and none more. */
  add(tree: TableTree): void {
    let done = 0;
    const broken = (error: BlockError): never => {
      throw error;
    };
    try {
      for (const piece of this.pieces(tree.references(broken))) {
        this.change(piece, 1);
        done++;
      }
    } catch (error) {
      this.takeBack(tree, done);
      throw error;
    }
  }

  /** Undoes `add`. What cannot be undone is a leak. @param pieces how much of it */
  takeBack(tree: TableTree, pieces = Number.POSITIVE_INFINITY): void {
    let left = pieces;
    try {
      for (const piece of this.pieces(tree.references(() => undefined))) {
        if (left-- <= 0) return;
        this.change(piece, -1);
      }
    } catch (error) {
      log('%s: references are left over: %s', this.storage.path, error);
    }
  }

  /**
   * One reference less for everything that the tree names, and for its own L1 table. Nothing on stable storage names it any
   * more, so what is left without references is free at once. A failure leaves leaks and is no error.
   * @returns whether clusters are left that have exactly one reference
   */
  release(tree: TableTree): boolean {
    let single = false;
    // Requests that come know nothing that was read of these clusters before.
    this.state.records.nextGeneration();
    const runs = function* (): Generator<ClusterRun> {
      yield tree.ownClusters();
      yield* tree.references((error) => log('%s', error.message));
    };
    try {
      for (const piece of this.pieces(runs())) {
        try {
          if (this.releasePiece(piece)) single = true;
        } catch (error) {
          this.leak(piece.count, error);
        }
      }
    } catch (error) {
      log('%s: tables of a snapshot could not be read, what they name leaks: %s', this.storage.path, error);
    }
    return single;
  }

  /** No flag of these tables is set afterwards. */
  clearFlags(tree: TableTree): void {
    this.setFlags(tree, () => false);
  }

  /** The flags of these tables, which are the disk's own, say what the counts say. */
  refreshFlags(tree: TableTree): void {
    this.setFlags(tree, (cluster) => {
      const count = this.refcounts.get(cluster);
      return typeof count === 'object' ? count : count === 1;
    });
  }

  private setFlags(tree: TableTree, copiedOf: CopiedOf): void {
    const entryBytes = this.header.extendedL2 ? 16 : 8;
    for (const { offset, bytes } of tree.tables((error) => log('%s', error.message))) {
      this.setTableFlags(bytes, offset, entryBytes, 'l2-update', copiedOf);
    }
    this.setTableFlags(tree.l1, tree.l1Offset, 8, 'l1-update', copiedOf);
  }

  private setTableFlags(
    bytes: Buffer,
    offset: number,
    entryBytes: number,
    event: StorageEvent,
    copiedOf: CopiedOf,
  ): void {
    const { clusterSize } = this.header;
    const changed: boolean[] = [];
    let at = 0;
    this.loading(() => {
      for (; at < bytes.length; at += entryBytes) {
        const high = bytes.readUInt32BE(at);
        if (event === 'l2-update' && isCompressed(high)) continue;
        const host = offsetOf(high, bytes.readUInt32BE(at + 4));
        if (host === 0 || host % clusterSize !== 0) continue;
        const copied = copiedOf(host / clusterSize);
        if (typeof copied === 'object') return copied;
        if (copied === isCopied(high)) continue;
        bytes[at] = withCopied(bytes[at], copied);
        changed[Math.floor(at / SECTOR)] = true;
      }
      return undefined;
    });
    if (changed.length === 0) return;
    try {
      for (let sector = 0; sector < changed.length; sector++) {
        if (!changed[sector]) continue;
        let end = sector + 1;
        while (changed[end]) end++;
        const from = sector * SECTOR;
        this.storage.write(offset + from, bytes, from, Math.min(end * SECTOR, bytes.length) - from, event);
        sector = end;
      }
    } finally {
      this.state.markDataDirty();
      this.locked(() => {
        for (let at = 0; at < bytes.length; at += clusterSize) this.refcounts.forgetTables(offset + at);
      });
    }
  }

  /** Runs cut where the slices of counts end. */
  private *pieces(runs: Iterable<ClusterRun>): Generator<ClusterRun> {
    const { perSlice } = this.refcounts;
    for (const { first, count } of runs) {
      for (let done = 0; done < count; ) {
        const length = Math.min(count - done, perSlice - ((first + done) % perSlice));
        yield { first: first + done, count: length };
        done += length;
      }
    }
  }

  private change({ first, count }: ClusterRun, by: number): void {
    this.loading(() => this.refcounts.change(first, count, by));
  }

  /** @returns whether some of it has exactly one reference now */
  private releasePiece({ first, count }: ClusterRun): boolean {
    const { clusterSize } = this.header;
    let single = false;
    for (let done = 0; done < count; ) {
      const run = this.sameSort(first + done, count - done);
      if (run.references === 0) {
        log('%s: %d clusters at %d had no references', this.storage.path, run.count, (first + done) * clusterSize);
      } else if (run.references === 1) {
        this.free(first + done, run.count);
      } else {
        this.change({ first: first + done, count: run.count }, -1);
        single = true;
      }
      done += run.count;
    }
    return single;
  }

  /** How many clusters from `first` on have no, one or several references, as it has. */
  private sameSort(first: number, most: number): { references: number; count: number } {
    const { refcounts } = this;
    let references = 0;
    let count = 0;
    this.loading(() => {
      for (; count < most; count++) {
        const found = refcounts.get(first + count);
        if (typeof found === 'object') return found;
        if (count === 0) references = Math.min(found, 2);
        else if (Math.min(found, 2) !== references) break;
      }
      return undefined;
    });
    return { references, count };
  }

  /** Clean first, then free: a free place reads zero. */
  private free(first: number, count: number): void {
    const { refcounts, storage } = this;
    const { clusterSize } = this.header;
    storage.punch(first * clusterSize, count * clusterSize, 'cluster-free');
    this.state.markDataDirty();
    this.loading(() => {
      const missing = refcounts.set(first, count, 0);
      if (missing !== undefined) return missing;
      for (let i = 0; i < count; i++) refcounts.forgetTables((first + i) * clusterSize);
      refcounts.addFree(first * clusterSize, count * clusterSize);
      return undefined;
    });
  }

  private leak(clusters: number, error: unknown): void {
    log('%s: %d clusters of a snapshot leak: %s', this.storage.path, clusters, error);
    this.locked(() => {
      this.state.forgotten += clusters * this.header.clusterSize;
    });
  }

  /** Runs `body` under the exclusive lock, again and again until it wants no slice. */
  private loading(body: () => TableSlice | undefined): void {
    for (let attempt = 0; ; attempt++) {
      const missing = this.locked(body);
      if (missing === undefined) return;
      this.engine.load(missing, attempt);
    }
  }

  private locked<T>(body: () => T): T {
    return this.state.lock.withExclusive(body);
  }
}
