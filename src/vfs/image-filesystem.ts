/**
 * The `FileSystem` of one thread: the plan of the tree (`tree.ts`), made of files over this thread's block nodes.
 * A request goes from its inode number through one array to the file; nothing is looked up by name but in `lookup`.
 */
import * as assert from 'node:assert';
import * as fs from 'node:fs';
import * as path from 'node:path';
import type { BlockNode } from '../block/node';
import { logOf } from '../log';
import type { HostPlace } from '../storage/storage';
import { Directory } from './directory';
import { DiskFile } from './disk-file';
import type {
  DirectoryEntry,
  FallocateMode,
  FileAttributes,
  FileSystem,
  FileSystemStatistics,
  OpenedFile,
  OpenFlags,
} from './filesystem';
import { FileError } from './filesystem';
import type { SnapshotFolder } from './snapshot-folder';
import { BLOCK_SNAPSHOTS, type SnapshotSource } from './snapshot-source';
import { type MakeFile, SnapshotTree } from './snapshot-tree';
import { TextFile } from './text-file';
import { textContent } from './texts';
import { clockOf, type FilePlan, type NodeReference, ROOT_INO, type TreePlan, TreeState } from './tree';
import { DEFAULT_BLOCK_SIZE, type FileFacts, type VirtualFile } from './virtual-file';

const log = logOf('vfs');

export interface ImageFileSystemOptions {
  /** Writes and truncation past the end let a disk grow. */
  growable: boolean;
  readOnly: boolean;
  uid: number;
  gid: number;
}

/** What only tests and worker threads say. */
export interface FileSystemHooks {
  /** These files read differently from now on: the kernel must forget what it keeps of them. Returns when it has. */
  onReplaced?(inos: readonly number[]): void;
  source?: SnapshotSource;
}

/**
 * @param nodes this thread's top node of each image, in the order of the images of the plan; undefined for those that could not be opened
 */
export function createFileSystem(
  plan: TreePlan,
  nodes: readonly (BlockNode | undefined)[],
  options: ImageFileSystemOptions,
  hooks: FileSystemHooks = {},
): FileSystem {
  return new ImageFileSystem(plan, nodes, options, hooks);
}

/**
 * When the mount is gone, before the images are closed: deletes the snapshots that were kept for handles which nobody released.
 * @param nodes as for `createFileSystem`
 */
export function finishSnapshots(
  plan: TreePlan,
  nodes: readonly (BlockNode | undefined)[],
  hooks: FileSystemHooks = {},
): void {
  const options = { growable: false, readOnly: false, uid: 0, gid: 0 };
  new ImageFileSystem(plan, nodes, options, hooks).snapshots.disposeDoomed();
}

class ImageFileSystem implements FileSystem {
  readonly rootIno = ROOT_INO;
  /** By inode number; each number of the plan is in one of the two, or the folder of an image's snapshots. */
  private readonly files: (VirtualFile | undefined)[];
  private readonly directories: (Directory | undefined)[];
  /** Snapshots' folders and what is in them. */
  readonly snapshots: SnapshotTree;
  private readonly readOnly: boolean;
  private readonly hostPath: string | undefined;

  constructor(
    plan: TreePlan,
    nodes: readonly (BlockNode | undefined)[],
    options: ImageFileSystemOptions,
    hooks: FileSystemHooks,
  ) {
    const state = new TreeState(plan.state);
    const { uid, gid, readOnly, growable } = options;
    this.hostPath = plan.hostPath;
    this.readOnly = readOnly;
    const make: MakeFile = (file, node, facts, { live, opens } = {}) => {
      if (file.kind === 'text') return new TextFile(facts, textContent(file.text, node, live), state.openTexts);
      assert.ok(file.kind === 'disk' && node !== undefined, 'a disk has a node');
      return new DiskFile(node, facts, { writable: file.writable && !readOnly, growable, opens });
    };
    const onReplaced = (image: number): void => {
      state.times[clockOf(image)] = Date.now();
      hooks.onReplaced?.(liveDisks(plan, image));
    };
    const source = hooks.source ?? BLOCK_SNAPSHOTS;
    this.snapshots = new SnapshotTree(plan, nodes, { make, uid, gid, source, onReplaced });
    const factsOf = (ino: number, { mode, clock }: { mode: number; clock: number }): FileFacts => {
      return { ino, mode, uid, gid, times: state.times, clock };
    };
    this.directories = plan.files.map((file, ino) =>
      file?.kind === 'directory' ? new Directory(factsOf(ino, file), entriesOf(plan, file)) : undefined,
    );
    this.files = plan.files.map((file, ino) => {
      if (file?.kind === 'disk') {
        const { node } = file;
        const opens = node.layer === 0 ? this.snapshots.liveOpens(node.image) : undefined;
        return make(file, nodeOf(nodes, node), factsOf(ino, file), { opens });
      }
      if (file?.kind !== 'text') return undefined;
      const node = file.text.of === 'error' ? undefined : nodeOf(nodes, file.text.node);
      return make(file, node, factsOf(ino, file));
    });
  }

  lookup(parent: number, name: string): number {
    const directory = this.directories[parent];
    if (directory !== undefined) return directory.lookup(name);
    return this.snapshots.lookup(parent, name) ?? this.notADirectory(parent);
  }

  attributes(ino: number): FileAttributes {
    const file = this.directories[ino] ?? this.files[ino];
    if (file !== undefined) return file.attributes();
    return this.snapshots.attributes(ino) ?? this.notAFile(ino);
  }

  list(ino: number): DirectoryEntry[] {
    return this.directories[ino]?.list() ?? this.snapshots.list(ino) ?? this.notADirectory(ino);
  }

  open(ino: number, flags: OpenFlags): OpenedFile {
    return this.files[ino]?.open(flags) ?? this.snapshots.open(ino, flags) ?? this.notAFile(ino);
  }

  release(ino: number, handle: number): void {
    const file = this.files[ino];
    if (file !== undefined) file.release(handle);
    else this.snapshots.release(ino, handle);
  }

  makeDirectory(parent: number, name: string): number {
    return this.snapshots.inoOf(this.changeable(parent).take(name));
  }

  removeDirectory(parent: number, name: string, mayBeOpen: boolean): void {
    this.changeable(parent).remove(name, mayBeOpen);
  }

  rename(parent: number, name: string, newParent: number, newName: string): void {
    const folder = this.changeable(parent);
    // Not EXDEV: mv(1) would then make a directory of that name, which is another snapshot, and copy.
    if (newParent !== parent) throw new FileError('EPERM', 'A snapshot stays in its folder');
    folder.rename(name, newName);
  }

  read(ino: number, handle: number, offset: number, target: Uint8Array, at: number, length: number): number {
    return this.file(ino).read(handle, offset, target, at, length);
  }

  prefetch(ino: number, offset: number, length: number): void {
    this.file(ino).prefetch?.(offset, length);
  }

  holding(ino: number, body: () => void): void {
    const file = this.file(ino);
    if (file.holding === undefined) body();
    else file.holding(body);
  }

  locate(ino: number, offset: number, length: number, place: HostPlace): boolean {
    return this.file(ino).locate?.(offset, length, place) === true;
  }

  countReads(ino: number, operations: number, bytes: number): void {
    this.file(ino).countReads?.(operations, bytes);
  }

  write(
    ino: number,
    handle: number,
    offset: number,
    source: Uint8Array,
    at: number,
    length: number,
    sync: boolean,
  ): number {
    return this.file(ino).write(handle, offset, source, at, length, sync);
  }

  fsync(ino: number, handle: number): void {
    this.file(ino).fsync(handle);
  }

  setSize(ino: number, size: number): void {
    this.file(ino).setSize(size);
  }

  fallocate(ino: number, handle: number, mode: FallocateMode, keepSize: boolean, offset: number, length: number): void {
    this.file(ino).fallocate(handle, mode, keepSize, offset, length);
  }

  seek(ino: number, handle: number, offset: number, what: 'data' | 'hole'): number {
    return this.file(ino).seek(handle, offset, what);
  }

  /** Room on the host: that is what lets `df` say whether what is written to a sparse image will fit. */
  statistics(): FileSystemStatistics {
    const files = this.files.length - 1;
    if (this.hostPath === undefined) return { blockSize: DEFAULT_BLOCK_SIZE, blocks: 0, blocksFree: 0, files };
    try {
      // The folder, because the image itself may have been renamed while it is open.
      const host = fs.statfsSync(path.dirname(this.hostPath));
      return { blockSize: host.bsize, blocks: host.blocks, blocksFree: host.bavail, files };
    } catch (error) {
      log('statfs of %s: %O', this.hostPath, error);
      return { blockSize: DEFAULT_BLOCK_SIZE, blocks: 0, blocksFree: 0, files };
    }
  }

  private file(ino: number): VirtualFile {
    return this.files[ino] ?? this.snapshots.file(ino) ?? this.notAFile(ino);
  }

  /** The folder of snapshots with this inode number, to change what is in it. */
  private changeable(ino: number): SnapshotFolder {
    if (this.readOnly) throw new FileError('EROFS', 'This mount is read-only');
    const folder = this.snapshots.folder(ino);
    if (folder === undefined)
      throw new FileError('EPERM', 'Only in a folder "snapshots" can names be made and removed');
    return folder;
  }

  private isDirectory(ino: number): boolean {
    return this.directories[ino] !== undefined || this.snapshots.isDirectory(ino);
  }

  private notAFile(ino: number): never {
    if (this.isDirectory(ino)) throw new FileError('EISDIR', `Inode ${ino} is a directory`);
    throw new FileError('ENOENT', `There is no inode ${ino}`);
  }

  private notADirectory(ino: number): never {
    this.file(ino);
    throw new FileError('ENOTDIR', `Inode ${ino} is not a directory`);
  }
}

/** Inode numbers of the files that show the live disk of an image. */
function liveDisks(plan: TreePlan, image: number): number[] {
  return plan.files.flatMap((file, ino) =>
    file?.kind === 'disk' && file.node.image === image && file.node.layer === 0 ? [ino] : [],
  );
}

function entriesOf(plan: TreePlan, directory: FilePlan & { kind: 'directory' }): DirectoryEntry[] {
  return directory.children.map(({ name, ino }) => {
    const kind = plan.files[ino]?.kind;
    return { name, ino, kind: kind === 'directory' || kind === 'snapshots' ? 'directory' : 'file' };
  });
}

/** The node that a reference means, in this thread: down the chain from the image's top node. */
function nodeOf(nodes: readonly (BlockNode | undefined)[], reference: NodeReference): BlockNode {
  let node = nodes[reference.image];
  for (let layer = 0; layer < reference.layer; layer += 1) node = node?.backing;
  assert.ok(
    node !== undefined,
    `image ${reference.image} has no layer ${reference.layer}: plan and nodes belong together`,
  );
  return node;
}
