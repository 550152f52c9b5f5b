/** Dropped clusters on their way to being free: one reference less each, and without any left, cleaned and handed out again. */
import { BlockError } from '../../errors';
import { logOf } from '../../log';
import type { ImageState } from '../../shared/image-state';
import type { TableCache, TableSlice } from '../../shared/table-cache';
import type { Storage } from '../../storage/storage';
import type { HostOffset } from '../driver';
import type { Refcounts } from './refcounts';

const log = logOf('qcow2');
/** Table slices that freeing one run of clusters may ask for. */
const LOADS_MAX = 64;

export class GiveBack {
  constructor(
    private readonly storage: Storage,
    private readonly state: ImageState,
    private readonly refcounts: Refcounts,
    private readonly cache: TableCache,
    private readonly imageId: number,
    private readonly clusterSize: number,
  ) {}

  /** One reference less for each cluster; those without any are cleaned first and then free. */
  giveBack(offset: HostOffset, length: number): void {
    for (let done = 0; done < length; ) {
      try {
        done += this.giveBackSome(offset + done, length - done);
      } catch (error) {
        if (done === 0) throw error;
        // A part is done and must not be counted down twice: the rest goes its way again.
        this.locked(() => {
          if (!this.state.dropped.add(offset + done, length - done, 0)) this.state.forgotten += length - done;
        });
        log('%s: %d bytes at %d are freed later: %s', this.storage.path, length - done, offset + done, error);
        return;
      }
    }
    this.state.markDataDirty();
  }

  /** Clusters from `offset` on with one reference, or a single one with several or none. @returns bytes done */
  private giveBackSome(offset: HostOffset, length: number): number {
    const { refcounts, clusterSize, storage } = this;
    const first = offset / clusterSize;
    const most = length / clusterSize;
    const counts = this.loading(() => {
      const count = refcounts.get(first);
      if (typeof count === 'object' || count !== 1) return count;
      let clusters = 1;
      while (clusters < most && refcounts.get(first + clusters) === 1) clusters++;
      return -clusters;
    });
    // Never counted: the rest of a place that could not be taken.
    if (counts === 0) return clusterSize;
    const clusters = Math.max(1, -counts);
    if (counts < 0) storage.punch(offset, clusters * clusterSize, 'cluster-free');
    let done = 0;
    try {
      this.loading(() => {
        for (; done < clusters; done++) {
          const left = refcounts.decrement(first + done);
          if (typeof left === 'object') return left;
          if (left > 0) continue;
          refcounts.forgetTables(offset + done * clusterSize);
          // Counted down by somebody else meanwhile, so that nobody has cleaned it: only the search may find it.
          if (counts < 0) refcounts.addFree(offset + done * clusterSize, clusterSize);
          else refcounts.searchAgain(first);
        }
        return 0;
      });
    } catch (error) {
      if (done === 0) throw error;
    }
    return done * clusterSize;
  }

  /** Runs `body` under the exclusive lock until it does not answer a slice to load. For the flush, which has no engine above it. */
  private loading(body: () => number | TableSlice): number {
    for (let attempt = 0; ; attempt++) {
      const result = this.locked(body);
      if (typeof result === 'number') return result;
      const read = (target: Uint8Array, at: number, length: number) => {
        this.storage.read(result.offset, target, at, length);
      };
      // Slices may also evict each other, where all but one slot of their set are dirty: the next flush tries again.
      if (attempt > LOADS_MAX || !this.cache.load(this.imageId, result, read)) {
        throw new BlockError(
          'IO',
          `Cannot free clusters of "${this.storage.path}" now: the table cache is full of changes`,
        );
      }
    }
  }

  private locked<T>(body: () => T): T {
    return this.state.lock.withExclusive(body);
  }
}
