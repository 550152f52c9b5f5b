import type { SnapshotLayer } from '../cluster/snapshots';
import { ImageNode } from './image-node';
import type { BlockNodeStatistics } from './node';

/** An internal snapshot as a disk of its own, over the same file and the same backing file as the live disk. */
export class SnapshotNode extends ImageNode {
  constructor(live: ImageNode, snapshot: SnapshotLayer) {
    const header = { ...live.header, virtualSize: snapshot.size(), dirty: false };
    super(header, live.storage, snapshot, live.backing);
  }

  /** Not counted: the counters are the live disk's. */
  override read(offset: number, target: Uint8Array, at: number, length: number): void {
    if (length === 0) return;
    this.checkBounds('read', offset, length);
    this.layer.read(offset, target, at, length);
  }

  override countReads(): void {}

  override statistics(): BlockNodeStatistics {
    const counters = super.statistics();
    return Object.fromEntries(Object.keys(counters).map((name) => [name, 0])) as unknown as BlockNodeStatistics;
  }
}
