/** The end of the image file: it grows before something is written behind it, and is cut when the image is closed. */
import type { ImageState } from '../shared/image-state';
import type { Storage } from '../storage/storage';
import { alignUp, MIB } from '../units';
import type { HostOffset } from './driver';

/** The host file grows in steps of at least this, so that appending costs few system calls; close cuts what is left over. */
const GROW_STEP = MIB;
/** Flushes within one step that make the next one be written ahead. */
const SYNC_HEAVY = 4;
const ZEROES = new Uint8Array(GROW_STEP);

export class HostEnd {
  constructor(
    private readonly storage: Storage,
    private readonly state: ImageState,
    private readonly clusterSize: number,
  ) {}

  /**
   * Lengths only go up while the image is open, and only under the mutex: no thread's write is ever cut off. The new part
   * reads zero. It is a hole; but while somebody syncs after every few clusters it is written ahead: into blocks that exist,
   * fdatasync writes data only, while each new block costs a commit of the host's journal (measured on ext4, a 64 KiB cluster
   * and a table entry with two syncs: 250-280 us into holes, 215-225 us into zeroes).
   */
  grow(end: HostOffset): void {
    const { state, storage } = this;
    if (state.hostSize >= end) return;
    state.growMutex.lock();
    try {
      if (state.hostSize >= end) return;
      // A file that ended inside a cluster: nothing valid lies in that part, and it must not show up in a new cluster.
      if (storage.size() > state.hostSize) storage.truncate(state.hostSize, 'cluster-grow');
      const size = alignUp(Math.max(end, state.hostSize + GROW_STEP), this.clusterSize);
      const flushes = state.flushGate.flushes;
      if (flushes - state.flushesAtGrowth >= SYNC_HEAVY && size - state.hostSize <= GROW_STEP) {
        storage.write(state.hostSize, ZEROES, 0, size - state.hostSize, 'cluster-grow');
      } else {
        storage.truncate(size, 'cluster-grow');
      }
      state.flushesAtGrowth = flushes;
      state.hostSize = size;
      state.markDataDirty();
    } finally {
      state.growMutex.unlock();
    }
  }

  /** Longer than it was at open only because we made it so. Not synced: after a crash the tail is back, and nobody's. */
  cut(): void {
    const { state, storage } = this;
    state.lock.withExclusive(() => {
      state.fileEnd = state.free.takeEndingAt(state.fileEnd);
    });
    if (state.hostSize <= state.fileEnd) return;
    storage.truncate(state.fileEnd, 'cluster-free');
    state.hostSize = state.fileEnd;
  }
}
