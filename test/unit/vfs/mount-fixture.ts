/** A file system over nodes in memory: one broken image, and one of two layers. */
import type { FileSystem } from '../../../src/vfs/filesystem';
import { createFileSystem, type ImageFileSystemOptions } from '../../../src/vfs/image-filesystem';
import { buildTree, type TreeImage } from '../../../src/vfs/tree';
import { MemoryNode, pattern } from './memory-node';

export const READ = { read: true, write: false, truncate: false };
export const WRITE = { read: true, write: true, truncate: false };
export const MOUNTED_MS = 1_700_000_000_000;
export const MTIME_MS = 1_600_000_000_000;
export const CLUSTER = 4096;
export const OPTIONS: ImageFileSystemOptions = { growable: false, readOnly: false, uid: 7, gid: 8 };

export interface Mounted {
  top: MemoryNode;
  base: MemoryNode;
  /** Another worker thread's file system over the same mount. */
  another(): FileSystem;
  fileSystem: FileSystem;
}

/** `vm.img` over `base.img`: four clusters; the second is the overlay's, the first and third are the backing file's. */
export function mount(options: Partial<ImageFileSystemOptions> = {}, directory = '/images'): Mounted {
  const base = new MemoryNode({ size: 4 * CLUSTER, readOnly: false, path: `${directory}/base.img` });
  base.write(0, pattern(CLUSTER, 1), 0, CLUSTER);
  base.write(2 * CLUSTER, pattern(CLUSTER, 2), 0, CLUSTER);
  const top = new MemoryNode({ size: 4 * CLUSTER, backing: base, path: `${directory}/vm.img` });
  top.write(CLUSTER, pattern(CLUSTER, 3), 0, CLUSTER);
  const common = { format: 'memory', mode: 0o100644, mtimeMs: MTIME_MS };
  const images: TreeImage[] = [
    { name: 'broken', error: { code: 'INVALID_FORMAT', message: 'Cannot open "broken"' } },
    {
      name: 'vm.img',
      layers: [
        { ...common, path: top.path, readOnly: false },
        { ...common, path: base.path, readOnly: true },
      ],
    },
  ];
  const plan = buildTree(images, { singleImage: false, mountedMs: MOUNTED_MS });
  const another = () => createFileSystem(structuredClone(plan), [undefined, top], { ...OPTIONS, ...options });
  return { top, base, another, fileSystem: createFileSystem(plan, [undefined, top], { ...OPTIONS, ...options }) };
}

export function walk(fileSystem: FileSystem, name: string): number {
  const parts = name.split('/').filter((part) => part !== '');
  return parts.reduce((ino, part) => fileSystem.lookup(ino, part), fileSystem.rootIno);
}

export function readDisk(fileSystem: FileSystem, name: string): Uint8Array {
  const ino = walk(fileSystem, name);
  const { handle } = fileSystem.open(ino, READ);
  const target = new Uint8Array(fileSystem.attributes(ino).size);
  const count = fileSystem.read(ino, handle, 0, target, 0, target.length);
  fileSystem.release(ino, handle);
  return target.subarray(0, count);
}

export function readText(fileSystem: FileSystem, name: string): string {
  const ino = walk(fileSystem, name);
  const { handle } = fileSystem.open(ino, READ);
  const target = Buffer.alloc(65_536);
  const count = fileSystem.read(ino, handle, 0, target, 0, target.length);
  fileSystem.release(ino, handle);
  return target.toString('utf8', 0, count);
}

export const ALL_FILES = [
  'broken/error.json',
  'vm.img/disk',
  'vm.img/info.json',
  'vm.img/map.json',
  'vm.img/stats.json',
  'vm.img/layers/0-vm.img/disk',
  'vm.img/layers/0-vm.img/info.json',
  'vm.img/layers/0-vm.img/map.json',
  'vm.img/layers/1-base.img/disk',
  'vm.img/layers/1-base.img/info.json',
  'vm.img/layers/1-base.img/map.json',
];

export function codeOf(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    return String((error as { code?: unknown }).code);
  }
  return 'nothing thrown';
}
