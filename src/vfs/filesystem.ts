/**
 * What the files of a mount mean. A session (`fuse/`) translates between the kernel and this interface; it never sees a
 * block node. Every method is synchronous, may be called from any worker thread, and either returns or throws a
 * `BlockError` or a `FileError`; the session turns what was thrown into exactly one reply.
 */

import type { HostPlace } from '../storage/storage';

export type { HostPlace };

/** Errors that only file systems have, beside those of the block layer. */
export type FileErrorCode =
  | 'ENOENT'
  | 'EPERM'
  | 'EROFS'
  | 'EISDIR'
  | 'ENOTDIR'
  | 'EINVAL'
  | 'ENXIO'
  | 'EOPNOTSUPP'
  | 'EBADF'
  | 'ENOSPC'
  | 'EFBIG'
  | 'EACCES'
  | 'EMFILE'
  | 'ENAMETOOLONG'
  | 'EEXIST'
  | 'EBUSY';

export class FileError extends Error {
  readonly code: FileErrorCode;
  constructor(code: FileErrorCode, message: string = code) {
    super(message);
    this.name = 'FileError';
    this.code = code;
  }
}

export interface FileAttributes {
  ino: number;
  kind: 'directory' | 'file';
  /** Permission bits only, e.g. 0o600. */
  mode: number;
  uid: number;
  gid: number;
  nlink: number;
  size: number;
  /** 512-byte blocks really taken. */
  blocks: number;
  blksize: number;
  /** Milliseconds since the epoch. */
  atimeMs: number;
  mtimeMs: number;
  ctimeMs: number;
  /** A virtual disk, whose attributes the kernel may keep for a second. Absent or false for text: the kernel asks each time. */
  isDisk?: boolean;
  /** The name and the file may go at any time: the kernel asks each time. */
  volatile?: boolean;
}

export interface DirectoryEntry {
  name: string;
  ino: number;
  kind: 'directory' | 'file';
  /** Where a listing goes on behind this entry, in a directory that changes: > 0, ascending, the entry's for ever. */
  position?: number;
}

export interface OpenFlags {
  read: boolean;
  write: boolean;
  truncate: boolean;
}

export interface OpenedFile {
  /** Handle for read, write and release; < 2^31. */
  handle: number;
  /** The content is a virtual disk: may be cached if the user asks. False: text made at open, always direct. */
  isDisk: boolean;
}

export interface FileSystemStatistics {
  blockSize: number;
  blocks: number;
  blocksFree: number;
  files: number;
}

export type FallocateMode = 'allocate' | 'punch-hole' | 'zero-range';

export interface FileSystem {
  /** Inode number of the root directory: 1. */
  readonly rootIno: number;

  /** Inode number of `name` in directory `parent`. Throws ENOENT, ENOTDIR, ENAMETOOLONG. */
  lookup(parent: number, name: string): number;
  attributes(ino: number): FileAttributes;
  /** Without `.` and `..`. */
  list(ino: number): DirectoryEntry[];

  /** Throws EROFS for writing to what is read-only, EISDIR for a directory. */
  open(ino: number, flags: OpenFlags): OpenedFile;
  release(ino: number, handle: number): void;

  /** @returns bytes read; fewer than `length` only at the end of the file */
  read(ino: number, handle: number, offset: number, target: Uint8Array, at: number, length: number): number;

  /** A read of this range follows: what it needs may be fetched meanwhile. Returns at once as a rule. */
  prefetch(ino: number, offset: number, length: number): void;

  /**
   * For whoever makes several reads of one file at once by himself: runs `body`, in which `locate` may be called for this file and nothing else.
   * Until it ends what was located stays there.
   */
  holding(ino: number, body: () => void): void;
  /** @returns whether the whole range can be read at `place`; a read that finds less, or fails, is for `read` to make again */
  locate(ino: number, offset: number, length: number, place: HostPlace): boolean;
  /** Reads that were made where `locate` said. */
  countReads(ino: number, operations: number, bytes: number): void;

  /**
   * @param sync the data must be on stable storage before this returns (O_SYNC, O_DSYNC)
   * @returns bytes written; fewer than `length` only at the end of a fixed-size disk. Throws ENOSPC at or past it.
   */
  write(
    ino: number,
    handle: number,
    offset: number,
    source: Uint8Array,
    at: number,
    length: number,
    sync: boolean,
  ): number;

  fsync(ino: number, handle: number): void;

  /** O_TRUNC, truncate(2), ftruncate(2). A fixed disk ignores shrinking; growing needs `growable`, else throws EPERM. */
  setSize(ino: number, size: number): void;

  /** chmod, chown: EPERM. Times are accepted and ignored. */
  fallocate(ino: number, handle: number, mode: FallocateMode, keepSize: boolean, offset: number, length: number): void;

  /** SEEK_DATA, SEEK_HOLE. Throws ENXIO at or past the end, and for data when only holes follow. */
  seek(ino: number, handle: number, offset: number, what: 'data' | 'hole'): number;

  statistics(): FileSystemStatistics;

  /**
   * Makes, removes and renames snapshots, which are directories. EPERM where that is not possible; EROFS when nothing can be written;
   * EEXIST, ENOENT, EINVAL, ENAMETOOLONG for names.
   * @returns the inode number of the new directory
   */
  makeDirectory(parent: number, name: string): number;
  /** @param mayBeOpen those who have files in it open go on reading them; false: EBUSY while there are any */
  removeDirectory(parent: number, name: string, mayBeOpen: boolean): void;
  /** Never replaces anything. */
  rename(parent: number, name: string, newParent: number, newName: string): void;
}
