/** Internal snapshots of an image with tables: reading them as layers, and changing their list while others use the image. */
import { BlockError } from '../errors';
import type { OpenedSnapshot, SnapshotDriver } from '../formats/driver';
import type { SnapshotEngine, SnapshotInfo } from '../formats/snapshots';
import { logOf } from '../log';
import { ClusterLayer } from './cluster-layer';
import { markingCorrupt, refuseCorrupt } from './corrupt';
import { refuseAfterFailure } from './flush';
import type { Below, LayerStatus } from './layer';

const log = logOf('cluster');

/** A snapshot to read. Its requests have records as all of the image have: what they read is not freed meanwhile. */
export class SnapshotLayer extends ClusterLayer {
  override readonly readOnly = true;
  /** Nobody changes the file: there are no records to keep. */
  private readonly unchanging: boolean;

  /** @param below of the live disk; absent for the VM state, which has nothing below it */
  constructor(
    private readonly live: ClusterLayer,
    private readonly opened: OpenedSnapshot,
    below: Below | undefined,
  ) {
    super(opened.driver, live.cache, live.imageId, below);
    this.unchanging = live.readOnly;
  }

  /** Bytes. */
  get vmStateSize(): number {
    return this.opened.info.vmStateSize;
  }

  override size(): number {
    return this.opened.info.virtualSize;
  }

  override read(guest: number, target: Uint8Array, at: number, length: number): void {
    this.guarded(() => this.readRuns(guest, target, at, length));
  }

  /** Whoever finds no room in the cache flushes the image: by the live disk, whose driver knows how to free what was dropped. */
  override flush(): void {
    this.live.flush();
  }

  override withHoles(status: LayerStatus): LayerStatus {
    return this.live.withHoles(status);
  }

  protected override guarded<T>(body: () => T): T {
    if (this.unchanging) return body();
    const { records } = this.state;
    records.begin();
    try {
      if (!this.opened.exists()) throw noSuchSnapshot(this, this.opened.info.id);
      return body();
    } finally {
      records.end();
    }
  }
}

/** Runs `body`, which reads the list of snapshots, inside a request of this thread. */
export function withSnapshots<T>(layer: ClusterLayer, body: (snapshots: SnapshotDriver) => T): T {
  const snapshots = snapshotsOf(layer);
  if (layer.readOnly) return body(snapshots);
  const { records } = layer.state;
  records.begin();
  try {
    return body(snapshots);
  } finally {
    records.end();
  }
}

export function takeSnapshot(layer: ClusterLayer, name: string): SnapshotInfo {
  return changing(layer, (snapshots, engine) => snapshots.take(name, engine));
}

export function removeSnapshot(layer: ClusterLayer, id: string): void {
  changing(layer, (snapshots, engine) => snapshots.remove(id, engine));
  flushAfter(layer);
}

export function revertToSnapshot(layer: ClusterLayer, id: string): void {
  changing(layer, (snapshots, engine) => snapshots.revert(id, engine));
  flushAfter(layer);
}

export function renameSnapshot(layer: ClusterLayer, id: string, name: string): void {
  const { driver, state } = layer;
  refuseAfterFailure(driver);
  refuseCorrupt(driver);
  state.resizeMutex.with(() => {
    markingCorrupt(driver, () => snapshotsOf(layer).rename(id, name, engineOf(layer)));
  });
}

export function noSuchSnapshot(layer: ClusterLayer, id: string): BlockError {
  const { path } = layer.driver.storage;
  return new BlockError('NOT_FOUND', `Cannot find snapshot "${id}" of "${path}": it does not exist`, { path });
}

/**
 * Changes the list with no request in flight and everything of before in the file. Most of it gets there while requests
 * still run, so that they wait for as little as possible.
 */
function changing<T>(layer: ClusterLayer, body: (snapshots: SnapshotDriver, engine: SnapshotEngine) => T): T {
  const { state, driver } = layer;
  const snapshots = snapshotsOf(layer);
  const engine = engineOf(layer);
  refuseAfterFailure(driver);
  refuseCorrupt(driver);
  return state.resizeMutex.with(() => {
    layer.flush();
    return state.records.drained(() => {
      layer.flush();
      return markingCorrupt(driver, () => body(snapshots, engine));
    });
  });
}

function engineOf(layer: ClusterLayer): SnapshotEngine {
  const { mapper } = layer;
  return { flush: () => layer.flush(), load: (slice, attempt) => mapper.load(slice, attempt) };
}

function snapshotsOf(layer: ClusterLayer): SnapshotDriver {
  const { snapshots, storage } = layer.driver;
  if (snapshots !== undefined) return snapshots;
  const { path } = storage;
  throw new BlockError('UNSUPPORTED_FEATURE', `Cannot use snapshots of "${path}": it cannot have any`, { path });
}

/** What was given back is free on disk too. The change itself is durable already; a failure is the next flush's to tell. */
function flushAfter(layer: ClusterLayer): void {
  try {
    layer.flush();
  } catch (error) {
    log('flush of %s after a change of its snapshots failed: %s', layer.driver.storage.path, error);
  }
}
