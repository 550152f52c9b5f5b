/**
 * Places in files without reference counts: a free place that was dropped before, else the end of the file.
 *
 * A place goes   end of file → reserved → published → dropped → (release durable) → retired → (older requests ended,
 * punched) → free → reserved ...   All free places read zero, so a partial write into one needs no zero fill.
 */
import type { ImageState } from '../shared/image-state';
import type { Storage } from '../storage/storage';
import { alignUp, MIB } from '../units';
import type { HostOffset, Reservation } from './driver';

/** The host file grows in steps of at least this, so that appending costs few system calls; close cuts what is left over. */
const GROW_STEP = MIB;

export class AppendAllocator {
  constructor(
    private readonly storage: Storage,
    private readonly state: ImageState,
    private readonly clusterSize: number,
  ) {}

  /**
   * Lock held exclusively.
   * @param length bytes wanted, whole clusters
   * @param minimum bytes that must lie together
   */
  reserve(length: number, minimum: number): Reservation {
    const { state } = this;
    const place = state.free.take(length, minimum) ?? { offset: state.fileEnd, length };
    if (place.offset === state.fileEnd) state.fileEnd += place.length;
    state.reserved++;
    return { ...place, fresh: true };
  }

  /** Lock held exclusively. Something may have been written there already, so it takes the way of a dropped place. */
  release(reservation: Reservation): void {
    this.state.reserved--;
    this.drop(reservation.offset, reservation.length);
  }

  /** Nothing in memory points there any more; the tables on disk still may. Lock held exclusively. */
  drop(offset: HostOffset, length: number): void {
    if (!this.state.dropped.add(offset, length, 0)) this.state.forgotten += length;
  }

  /** The place is nobody's: it gives its space back, reads zero, and may be taken. Without the lock. */
  giveBack(offset: HostOffset, length: number): void {
    const { state, storage } = this;
    storage.punch(offset, length, 'cluster-free');
    state.markDataDirty();
    state.lock.lockExclusive();
    try {
      if (!state.free.add(offset, length)) state.forgotten += length;
    } finally {
      state.lock.unlockExclusive();
    }
  }

  /**
   * Lengths only go up while the image is open, and only under the mutex: no thread's write is ever cut off.
   * The new part is a hole and reads zero.
   */
  growHostFile(end: HostOffset): void {
    const { state, storage } = this;
    if (state.hostSize >= end) return;
    state.growMutex.lock();
    try {
      if (state.hostSize >= end) return;
      // A file that ended inside a cluster: nothing valid lies in that part, and it must not show up in a new cluster.
      if (storage.size() > state.hostSize) storage.truncate(state.hostSize, 'cluster-grow');
      const size = alignUp(Math.max(end, state.hostSize + GROW_STEP), this.clusterSize);
      storage.truncate(size, 'cluster-grow');
      state.hostSize = size;
      state.markDataDirty();
    } finally {
      state.growMutex.unlock();
    }
  }

  /** Longer than it was at open only because we made it so. Not synced: after a crash the tail is back, as a leak. */
  cutTail(): void {
    const { state, storage } = this;
    state.lock.lockExclusive();
    try {
      state.fileEnd = state.free.takeEndingAt(state.fileEnd);
    } finally {
      state.lock.unlockExclusive();
    }
    if (state.hostSize <= state.fileEnd) return;
    storage.truncate(state.fileEnd, 'cluster-free');
    state.hostSize = state.fileEnd;
  }
}
