/** What every file of a mount can do, and what all kinds have in common. */
import type { HostPlace } from '../storage/storage';
import type { FallocateMode, FileAttributes, OpenedFile, OpenFlags } from './filesystem';

/** A file that holds bytes. The methods are those of `FileSystem`, for one inode. */
export interface VirtualFile {
  attributes(): FileAttributes;
  open(flags: OpenFlags): OpenedFile;
  /** Never throws: nobody is left who could do anything about it. */
  release(handle: number): void;
  read(handle: number, offset: number, target: Uint8Array, at: number, length: number): number;
  /** Only where a read may wait for the host's disk. */
  prefetch?(offset: number, length: number): void;
  /** The three only where a file of the host holds the bytes. */
  holding?(body: () => void): void;
  locate?(offset: number, length: number, place: HostPlace): boolean;
  countReads?(operations: number, bytes: number): void;
  write(handle: number, offset: number, source: Uint8Array, at: number, length: number, sync: boolean): number;
  fsync(handle: number): void;
  setSize(size: number): void;
  fallocate(handle: number, mode: FallocateMode, keepSize: boolean, offset: number, length: number): void;
  seek(handle: number, offset: number, what: 'data' | 'hole'): number;
}

/** What a file is told about itself when the tree is built. */
export interface FileFacts {
  ino: number;
  /** Permission bits. */
  mode: number;
  uid: number;
  gid: number;
  /** Times of last change, shared by all threads (`TreeState`), and which of them is this file's. */
  times: Float64Array;
  clock: number;
}

export const SECTOR_BYTES_OF_STAT = 512;
export const DEFAULT_BLOCK_SIZE = 4096;

/** The part of the attributes that does not depend on what the file holds. */
export function attributesOf(
  facts: FileFacts,
  kind: FileAttributes['kind'],
  content: { nlink: number; size: number; blocks: number; blksize: number },
): FileAttributes {
  const time = facts.times[facts.clock] ?? 0;
  const { ino, mode, uid, gid } = facts;
  return { ino, kind, mode, uid, gid, ...content, atimeMs: time, mtimeMs: time, ctimeMs: time };
}
