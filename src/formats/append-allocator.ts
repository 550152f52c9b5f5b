/**
 * Places in files without reference counts: a free place that was dropped before, else the end of the file.
 *
 * A place goes   end of file → reserved → published → dropped → (release durable) → retired → (older requests ended,
 * punched) → free → reserved ...   All free places read zero, so a partial write into one needs no zero fill.
 */
import type { ImageState } from '../shared/image-state';
import type { Storage } from '../storage/storage';
import type { HostOffset, Reservation } from './driver';
import { HostEnd } from './host-end';

export class AppendAllocator {
  private readonly hostEnd: HostEnd;

  constructor(
    private readonly storage: Storage,
    private readonly state: ImageState,
    clusterSize: number,
  ) {
    this.hostEnd = new HostEnd(storage, state, clusterSize);
  }

  /**
   * Lock held exclusively.
   * @param length bytes wanted, whole clusters
   * @param minimum bytes that must lie together
   */
  reserve(length: number, minimum: number): Reservation {
    const { state } = this;
    const place = state.free.take(length, minimum) ?? { offset: state.fileEnd, length };
    if (place.offset === state.fileEnd) state.fileEnd += place.length;
    return { ...place, fresh: true };
  }

  /** Lock held exclusively. Something may have been written there already, so it takes the way of a dropped place. */
  release(reservation: Reservation): void {
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
    state.lock.withExclusive(() => {
      if (!state.free.add(offset, length)) state.forgotten += length;
    });
  }

  growHostFile(end: HostOffset): void {
    this.hostEnd.grow(end);
  }

  cutTail(): void {
    this.hostEnd.cut();
  }
}
