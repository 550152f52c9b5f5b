/** Bodies of replies, written into a buffer at `at`. Every byte of a body is written: the buffer holds an older reply. */
import type { DirectoryEntry, FileAttributes, FileSystemStatistics } from '../../vfs/filesystem';
import {
  ATTR,
  ATTR_OUT,
  DIRENT,
  DT_DIR,
  DT_REG,
  ENTRY_OUT,
  LSEEK_OUT,
  OPEN_OUT,
  S_IFDIR,
  S_IFREG,
  STATFS_OUT,
  WRITE_OUT,
} from './protocol';

const TWO_32 = 2 ** 32;

/** Longest name of a file, bytes. */
const NAME_BYTES_MAX = 255;

/** How long the kernel may believe a name, and the attributes of a disk or a directory, seconds. */
const NAME_TIMEOUT_S = 1;
const ATTRIBUTES_TIMEOUT_S = 1;

/** Text has a new size each time it is made, and `stat` must tell the latest: the kernel asks each time. */
function attributesTimeout(attributes: FileAttributes): number {
  if (attributes.volatile === true) return 0;
  return attributes.kind === 'directory' || attributes.isDisk === true ? ATTRIBUTES_TIMEOUT_S : 0;
}

function writeU64(target: Buffer, at: number, value: number): void {
  target.writeUInt32LE(value % TWO_32, at);
  target.writeUInt32LE(Math.floor(value / TWO_32), at + 4);
}

function writeTime(target: Buffer, seconds: number, nanoseconds: number, timeMs: number): void {
  const whole = Math.floor(Math.max(0, timeMs) / 1000);
  writeU64(target, seconds, whole);
  target.writeUInt32LE(Math.floor((Math.max(0, timeMs) - whole * 1000) * 1e6), nanoseconds);
}

/** struct fuse_attr */
export function encodeAttributes(target: Buffer, at: number, attributes: FileAttributes): number {
  target.fill(0, at, at + ATTR.BYTES);
  writeU64(target, at + ATTR.INO, attributes.ino);
  writeU64(target, at + ATTR.SIZE, attributes.size);
  writeU64(target, at + ATTR.BLOCKS, attributes.blocks);
  writeTime(target, at + ATTR.ATIME, at + ATTR.ATIME_NS, attributes.atimeMs);
  writeTime(target, at + ATTR.MTIME, at + ATTR.MTIME_NS, attributes.mtimeMs);
  writeTime(target, at + ATTR.CTIME, at + ATTR.CTIME_NS, attributes.ctimeMs);
  target.writeUInt32LE((attributes.kind === 'directory' ? S_IFDIR : S_IFREG) + attributes.mode, at + ATTR.MODE);
  target.writeUInt32LE(attributes.nlink, at + ATTR.NLINK);
  target.writeUInt32LE(attributes.uid, at + ATTR.UID);
  target.writeUInt32LE(attributes.gid, at + ATTR.GID);
  target.writeUInt32LE(attributes.blksize, at + ATTR.BLKSIZE);
  return ATTR.BYTES;
}

/** struct fuse_attr_out: the reply to GETATTR and SETATTR */
export function encodeAttributesReply(target: Buffer, at: number, attributes: FileAttributes): number {
  target.fill(0, at, at + ATTR_OUT.ATTR);
  writeU64(target, at + ATTR_OUT.VALID, attributesTimeout(attributes));
  encodeAttributes(target, at + ATTR_OUT.ATTR, attributes);
  return ATTR_OUT.BYTES;
}

/** struct fuse_entry_out: the reply to LOOKUP and MKDIR. Node ids are inode numbers. */
export function encodeEntry(target: Buffer, at: number, attributes: FileAttributes): number {
  target.fill(0, at, at + ENTRY_OUT.ATTR);
  writeU64(target, at + ENTRY_OUT.NODE, attributes.ino);
  writeU64(target, at + ENTRY_OUT.ENTRY_VALID, attributes.volatile === true ? 0 : NAME_TIMEOUT_S);
  writeU64(target, at + ENTRY_OUT.ATTR_VALID, attributesTimeout(attributes));
  encodeAttributes(target, at + ENTRY_OUT.ATTR, attributes);
  return ENTRY_OUT.BYTES;
}

export function encodeOpened(target: Buffer, at: number, handle: number, flags: number): number {
  target.fill(0, at, at + OPEN_OUT.BYTES);
  writeU64(target, at + OPEN_OUT.HANDLE, handle);
  target.writeUInt32LE(flags, at + OPEN_OUT.FLAGS);
  return OPEN_OUT.BYTES;
}

/** struct fuse_write_out: the reply to WRITE and COPY_FILE_RANGE */
export function encodeWritten(target: Buffer, at: number, bytes: number): number {
  target.writeUInt32LE(bytes, at + WRITE_OUT.SIZE);
  target.writeUInt32LE(0, at + WRITE_OUT.SIZE + 4);
  return WRITE_OUT.BYTES;
}

export function encodeOffset(target: Buffer, at: number, offset: number): number {
  writeU64(target, at + LSEEK_OUT.OFFSET, offset);
  return LSEEK_OUT.BYTES;
}

export function encodeStatistics(target: Buffer, at: number, statistics: FileSystemStatistics): number {
  target.fill(0, at, at + STATFS_OUT.BYTES);
  writeU64(target, at + STATFS_OUT.BLOCKS, statistics.blocks);
  writeU64(target, at + STATFS_OUT.BFREE, statistics.blocksFree);
  writeU64(target, at + STATFS_OUT.BAVAIL, statistics.blocksFree);
  writeU64(target, at + STATFS_OUT.FILES, statistics.files);
  target.writeUInt32LE(statistics.blockSize, at + STATFS_OUT.BSIZE);
  target.writeUInt32LE(NAME_BYTES_MAX, at + STATFS_OUT.NAMELEN);
  target.writeUInt32LE(statistics.blockSize, at + STATFS_OUT.FRSIZE);
  return STATFS_OUT.BYTES;
}

/**
 * struct fuse_dirent
 * @param end where the room for the listing ends
 * @param next what the kernel hands back to go on behind this entry
 * @returns bytes taken; 0 when the entry does not fit
 */
export function encodeDirectoryEntry(
  target: Buffer,
  at: number,
  end: number,
  entry: DirectoryEntry,
  next: number,
): number {
  const nameBytes = Buffer.byteLength(entry.name);
  const bytes = Math.ceil((DIRENT.NAME + nameBytes) / 8) * 8;
  if (bytes > end - at) return 0;
  target.fill(0, at + bytes - 8, at + bytes);
  writeU64(target, at + DIRENT.INO, entry.ino);
  writeU64(target, at + DIRENT.OFFSET, next);
  target.writeUInt32LE(nameBytes, at + DIRENT.NAME_LENGTH);
  target.writeUInt32LE(entry.kind === 'directory' ? DT_DIR : DT_REG, at + DIRENT.TYPE);
  target.write(entry.name, at + DIRENT.NAME, nameBytes, 'utf8');
  return bytes;
}
