/**
 * The `FileSystem` of one thread: the plan of the tree (`tree.ts`), made of files over this thread's block nodes.
 * A request goes from its inode number through one array to the file; nothing is looked up by name but in `lookup`.
 */
import * as assert from 'node:assert';
import * as fs from 'node:fs';
import * as path from 'node:path';
import type { BlockNode } from '../block/node';
import { logOf } from '../log';
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
import { TextFile } from './text-file';
import { textContent } from './texts';
import { type FilePlan, type NodeReference, ROOT_INO, type TreePlan, TreeState } from './tree';
import { DEFAULT_BLOCK_SIZE, type FileFacts, type VirtualFile } from './virtual-file';

const log = logOf('vfs');

export interface ImageFileSystemOptions {
  /** Writes and truncation past the end let a disk grow. */
  growable: boolean;
  readOnly: boolean;
  uid: number;
  gid: number;
}

/**
 * @param nodes this thread's top node of each image, in the order of the images of the plan; undefined for those that could not be opened
 */
export function createFileSystem(
  plan: TreePlan,
  nodes: readonly (BlockNode | undefined)[],
  options: ImageFileSystemOptions,
): FileSystem {
  return new ImageFileSystem(plan, nodes, options);
}

class ImageFileSystem implements FileSystem {
  readonly rootIno = ROOT_INO;
  /** By inode number; each number is in one of the two. */
  private readonly files: (VirtualFile | undefined)[];
  private readonly directories: (Directory | undefined)[];
  private readonly hostPath: string | undefined;

  constructor(plan: TreePlan, nodes: readonly (BlockNode | undefined)[], options: ImageFileSystemOptions) {
    const state = new TreeState(plan.state);
    const { uid, gid } = options;
    const factsOf = (file: FilePlan, ino: number): FileFacts => {
      return { ino, mode: file.mode, uid, gid, times: state.times, clock: file.clock };
    };
    this.hostPath = plan.hostPath;
    this.directories = plan.files.map((file, ino) =>
      file?.kind === 'directory' ? new Directory(factsOf(file, ino), entriesOf(plan, file)) : undefined,
    );
    this.files = plan.files.map((file, ino) => {
      if (file === undefined || file.kind === 'directory') return undefined;
      const facts = factsOf(file, ino);
      if (file.kind === 'disk') {
        const writable = file.writable && !options.readOnly;
        return new DiskFile(nodeOf(nodes, file.node), facts, { writable, growable: options.growable });
      }
      const node = file.text.of === 'error' ? undefined : nodeOf(nodes, file.text.node);
      return new TextFile(facts, textContent(file.text, node), state.openTexts);
    });
  }

  lookup(parent: number, name: string): number {
    return this.directory(parent).lookup(name);
  }

  attributes(ino: number): FileAttributes {
    return (this.directories[ino] ?? this.file(ino)).attributes();
  }

  list(ino: number): DirectoryEntry[] {
    return this.directory(ino).list();
  }

  open(ino: number, flags: OpenFlags): OpenedFile {
    return this.file(ino).open(flags);
  }

  release(ino: number, handle: number): void {
    this.files[ino]?.release(handle);
  }

  read(ino: number, handle: number, offset: number, target: Uint8Array, at: number, length: number): number {
    return this.file(ino).read(handle, offset, target, at, length);
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
    return this.files[ino] ?? this.notAFile(ino);
  }

  private notAFile(ino: number): never {
    if (this.directories[ino] !== undefined) throw new FileError('EISDIR', `Inode ${ino} is a directory`);
    throw new FileError('ENOENT', `There is no inode ${ino}`);
  }

  private directory(ino: number): Directory {
    const directory = this.directories[ino];
    if (directory !== undefined) return directory;
    this.file(ino);
    throw new FileError('ENOTDIR', `Inode ${ino} is not a directory`);
  }
}

function entriesOf(plan: TreePlan, directory: FilePlan & { kind: 'directory' }): DirectoryEntry[] {
  return directory.children.map(({ name, ino }) => {
    return { name, ino, kind: plan.files[ino]?.kind === 'directory' ? 'directory' : 'file' };
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
