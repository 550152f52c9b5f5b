/** A source of snapshots in memory, which writes down what it is asked for, and file systems over it: each stands for a thread. */
import type { BlockNode } from '../../../src/block/node';
import { BlockError } from '../../../src/errors';
import type { FileSystem } from '../../../src/vfs/filesystem';
import { createFileSystem, type ImageFileSystemOptions } from '../../../src/vfs/image-filesystem';
import type { SnapshotInfo, SnapshotSource } from '../../../src/vfs/snapshot-source';
import { buildTree, type TreeImage, type TreePlan } from '../../../src/vfs/tree';
import { MemoryNode, pattern } from './memory-node';
import { CLUSTER, MOUNTED_MS, MTIME_MS, OPTIONS } from './mount-fixture';

export const DATE_SEC = 1_650_000_000;
export const VM_STATE = pattern(10_000, 77);

interface Kept {
  info: SnapshotInfo;
  disk: Uint8Array;
}

/** As the block layer: ids are the smallest number above all, so that the id of a deleted last one is given out again. */
export class MemorySnapshots implements SnapshotSource {
  readonly calls: string[] = [];
  private kept: Kept[] = [];
  private moved = 0;
  /** Thrown by the next call that begins like this. */
  failing: { call: string; error: Error } | undefined;

  constructor(private readonly live: BlockNode) {}

  /** A snapshot that is there when the image is opened. */
  add(name: string, more: Partial<SnapshotInfo> = {}): SnapshotInfo {
    const id = String(1 + Math.max(0, ...this.kept.map(({ info }) => Number(info.id) || 0)));
    const size = this.live.size();
    const base = { id, name, vmStateSize: 0, dateSec: DATE_SEC, dateNsec: 500_000_000, vmClockNsec: 0 };
    const disk = new Uint8Array(size);
    this.live.read(0, disk, 0, size);
    const info = { ...base, virtualSize: size, ...more };
    this.kept.push({ info, disk });
    this.moved++;
    return info;
  }

  get ids(): string[] {
    return this.kept.map(({ info }) => info.id);
  }

  generation(): number {
    return this.moved;
  }

  list(): SnapshotInfo[] {
    this.note('list');
    return this.kept.map(({ info }) => info);
  }

  open(_node: BlockNode, id: string): BlockNode {
    this.note(`open ${id}`);
    const { info, disk } = this.find(id);
    const node = new MemoryNode({ size: info.virtualSize, path: '/images/vm.qcow2' });
    node.write(0, disk, 0, Math.min(disk.length, info.virtualSize));
    const read = node.read.bind(node);
    node.read = (...args) => {
      this.find(id);
      read(...args);
    };
    return Object.assign(node, { readOnly: true });
  }

  readVmState(_: BlockNode, id: string, offset: number, target: Uint8Array, at: number, length: number): number {
    const { info } = this.find(id);
    const count = Math.max(0, Math.min(length, info.vmStateSize - offset));
    target.set(VM_STATE.subarray(offset, offset + count), at);
    return count;
  }

  take(_node: BlockNode, name: string): SnapshotInfo {
    this.note(`take ${name}`);
    return this.add(name);
  }

  remove(_node: BlockNode, id: string): void {
    this.note(`remove ${id}`);
    this.find(id);
    this.kept = this.kept.filter(({ info }) => info.id !== id);
    this.moved++;
  }

  rename(_node: BlockNode, id: string, name: string): void {
    this.note(`rename ${id} ${name}`);
    this.kept = this.kept.map((kept) => (kept.info.id === id ? { ...kept, info: { ...kept.info, name } } : kept));
    this.moved++;
  }

  revert(_node: BlockNode, id: string): void {
    this.note(`revert ${id}`);
    const { disk } = this.find(id);
    this.live.write(0, disk, 0, disk.length);
  }

  private find(id: string): Kept {
    const kept = this.kept.find(({ info }) => info.id === id);
    if (kept === undefined) throw new BlockError('NOT_FOUND', `no snapshot ${id}`);
    return kept;
  }

  private note(call: string): void {
    this.calls.push(call);
    if (this.failing === undefined || !call.startsWith(this.failing.call)) return;
    const { error } = this.failing;
    this.failing = undefined;
    throw error;
  }
}

export interface SnapshotMount {
  live: MemoryNode;
  source: MemorySnapshots;
  plan: TreePlan;
  fileSystem: FileSystem;
  /** Another thread of the same mount. */
  another(): FileSystem;
  /** What the kernel was told to forget, in order. */
  replaced: number[][];
  /** Inode number of `snapshots`. */
  folder: number;
}

export interface SnapshotMountOptions extends Partial<ImageFileSystemOptions> {
  nodeReadOnly?: boolean;
  size?: number;
}

/** One image, whose view is the root. */
export function mountSnapshots(
  prepare: (source: MemorySnapshots, live: MemoryNode) => void = () => {},
  options: SnapshotMountOptions = {},
): SnapshotMount {
  const { nodeReadOnly = false, size = 4 * CLUSTER, ...more } = options;
  const live = new MemoryNode({ size, path: '/images/vm.qcow2' });
  live.write(0, pattern(CLUSTER, 1), 0, CLUSTER);
  const source = new MemorySnapshots(live);
  prepare(source, live);
  if (nodeReadOnly) Object.assign(live, { readOnly: true });
  const layers = [{ path: live.path, format: 'memory', readOnly: nodeReadOnly, mode: 0o100644, mtimeMs: MTIME_MS }];
  const images: TreeImage[] = [{ name: 'vm.qcow2', layers, snapshots: true }];
  const plan = buildTree(images, { singleImage: true, mountedMs: MOUNTED_MS });
  const replaced: number[][] = [];
  const onReplaced = (inos: readonly number[]) => {
    replaced.push([...inos]);
  };
  const another = () =>
    createFileSystem(structuredClone(plan), [live], { ...OPTIONS, ...more }, { source, onReplaced });
  const fileSystem = another();
  return { live, source, plan, fileSystem, another, replaced, folder: fileSystem.lookup(1, 'snapshots') };
}

export function namesIn(fileSystem: FileSystem, ino: number): string[] {
  return fileSystem.list(ino).map(({ name }) => name);
}
