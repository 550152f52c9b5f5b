/** What the snapshot files need of the block layer, as one object: tests put a node in memory behind it. */
import type { BlockNode } from '../block/node';
import {
  deleteSnapshot,
  listSnapshots,
  openSnapshot,
  readVmState,
  renameSnapshot,
  revertToSnapshot,
  type SnapshotInfo,
  snapshotGeneration,
  takeSnapshot,
} from '../block/snapshots';

export type { SnapshotInfo } from '../block/snapshots';

/** The functions of `block/snapshots.ts`, by the words that are said there. */
export interface SnapshotSource {
  generation(node: BlockNode): number;
  list(node: BlockNode): SnapshotInfo[];
  open(node: BlockNode, id: string): BlockNode;
  readVmState(node: BlockNode, id: string, offset: number, target: Uint8Array, at: number, length: number): number;
  take(node: BlockNode, name: string): SnapshotInfo;
  remove(node: BlockNode, id: string): void;
  rename(node: BlockNode, id: string, name: string): void;
  revert(node: BlockNode, id: string): void;
}

export const BLOCK_SNAPSHOTS: SnapshotSource = {
  generation: snapshotGeneration,
  list: listSnapshots,
  open: openSnapshot,
  readVmState,
  take: takeSnapshot,
  remove: deleteSnapshot,
  rename: renameSnapshot,
  revert: revertToSnapshot,
};
