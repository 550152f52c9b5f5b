/**
 * Internal snapshots of an opened image. Every function may be called from any thread that has the image attached, while
 * others read and write it.
 */
import { ClusterLayer } from '../cluster/cluster-layer';
import {
  noSuchSnapshot,
  removeSnapshot,
  renameSnapshot as renameInLayer,
  revertToSnapshot as revertLayer,
  SnapshotLayer,
  takeSnapshot as takeInLayer,
  withSnapshots,
} from '../cluster/snapshots';
import { BlockError } from '../errors';
import type { SnapshotInfo } from '../formats/snapshots';
import { ImageNode } from './image-node';
import type { BlockNode } from './node';
import { SnapshotNode } from './snapshot-node';

export type { SnapshotInfo } from '../formats/snapshots';

/** Opened VM states of each node, for reads that come one after the other. */
const vmStates = new WeakMap<BlockNode, { id: string; generation: number; offset: number; layer: SnapshotLayer }>();

/** Can the image have internal snapshots? (Some formats never, qcow2 not with an external data file.) */
export function supportsSnapshots(node: BlockNode): boolean {
  return layerOf(node)?.driver.snapshots !== undefined;
}

/** Moves with every change of the list, whichever thread makes it. */
export function snapshotGeneration(node: BlockNode): number {
  return layerOf(node)?.state.snapshotGeneration ?? 0;
}

/** In the order of the file; empty where there can be none. */
export function listSnapshots(node: BlockNode): SnapshotInfo[] {
  if (!supportsSnapshots(node)) return [];
  return withSnapshots(snapshotLayerOf(node), (snapshots) => snapshots.list());
}

/**
 * A read-only disk for this thread. Its content never changes; once the snapshot is deleted every read fails with NOT_FOUND.
 * Its `backing` is the live disk's.
 */
export function openSnapshot(node: BlockNode, id: string): BlockNode {
  const layer = snapshotLayerOf(node);
  return new SnapshotNode(node as ImageNode, snapshotLayer(layer, id, true).layer);
}

/**
 * Reads up to `length` bytes of the VM state at `offset`.
 * @returns how many there were: less than `length` at its end
 */
export function readVmState(
  node: BlockNode,
  id: string,
  offset: number,
  target: Uint8Array,
  at: number,
  length: number,
): number {
  const live = snapshotLayerOf(node);
  const generation = snapshotGeneration(node);
  let state = vmStates.get(node);
  if (state?.id !== id || state.generation !== generation) {
    const { layer, offset: start } = snapshotLayer(live, id, false);
    state = { id, generation, offset: start, layer };
    vmStates.set(node, state);
  }
  const count = Math.min(length, state.layer.vmStateSize - offset);
  if (count <= 0) return 0;
  state.layer.read(state.offset + offset, target, at, count);
  return count;
}

/**
 * Takes a snapshot of the disk as all writes that have returned left it. Durable on return.
 * @param name may be empty, and may be another snapshot's already
 */
export function takeSnapshot(node: BlockNode, name: string): SnapshotInfo {
  return takeInLayer(writableLayer(node), name);
}

/** Requests that still read the snapshot end first. Durable on return; what only it held is free. */
export function deleteSnapshot(node: BlockNode, id: string): void {
  removeSnapshot(writableLayer(node), id);
}

export function renameSnapshot(node: BlockNode, id: string, name: string): void {
  renameInLayer(writableLayer(node), id, name);
}

/** The disk becomes what it was when the snapshot was taken, its size too; what it holds now is lost. Durable on return. */
export function revertToSnapshot(node: BlockNode, id: string): void {
  revertLayer(writableLayer(node), id);
}

function snapshotLayer(live: ClusterLayer, id: string, withBelow: boolean): { layer: SnapshotLayer; offset: number } {
  return withSnapshots(live, (snapshots) => {
    const opened = snapshots.open(id);
    if (opened === undefined) throw noSuchSnapshot(live, id);
    return {
      layer: new SnapshotLayer(live, opened, withBelow ? live.below : undefined),
      offset: opened.vmStateOffset,
    };
  });
}

function layerOf(node: BlockNode): ClusterLayer | undefined {
  if (!(node instanceof ImageNode) || node instanceof SnapshotNode) return undefined;
  return node.layer instanceof ClusterLayer ? node.layer : undefined;
}

function snapshotLayerOf(node: BlockNode): ClusterLayer {
  const layer = layerOf(node);
  if (layer?.driver.snapshots !== undefined) return layer;
  const { path, format } = node;
  throw new BlockError(
    'UNSUPPORTED_FEATURE',
    `Cannot use snapshots of "${path}": this ${format} image cannot have any`,
    { path },
  );
}

function writableLayer(node: BlockNode): ClusterLayer {
  const layer = snapshotLayerOf(node);
  if (!node.readOnly) return layer;
  const { path } = node;
  throw new BlockError('READ_ONLY', `Cannot change the snapshots of "${path}": it is open read-only`, { path });
}
