/**
 * Tells the kernel to forget what it keeps of a file: attributes and, with `--kernel-cache` or a mapping, pages. Pages that a mapping has
 * changed are written first. Not for a thread that serves requests: the kernel may wait here for a page that another request fills.
 */
import * as fs from 'node:fs';
import { OUT, OUT_HEADER_BYTES } from './protocol';

/** enum fuse_notify_code */
const FUSE_NOTIFY_INVAL_INODE = 2;
/** struct fuse_notify_inval_inode_out: node, offset, length; 0 and 0 mean all of it. */
const INVALIDATION_BYTES = 24;

/** @param fd of /dev/fuse */
export function invalidateInode(fd: number, ino: number): void {
  const message = Buffer.alloc(OUT_HEADER_BYTES + INVALIDATION_BYTES);
  message.writeUInt32LE(message.length, OUT.LENGTH);
  message.writeInt32LE(FUSE_NOTIFY_INVAL_INODE, OUT.ERROR);
  message.writeBigUInt64LE(BigInt(ino), OUT_HEADER_BYTES);
  try {
    fs.writeSync(fd, message, 0, message.length);
  } catch (error) {
    // ENOENT: the kernel knows no such file, so it keeps nothing of it. ENODEV: the mount is gone.
    const { code } = error as NodeJS.ErrnoException;
    if (code !== 'ENOENT' && code !== 'ENODEV') throw error;
  }
}
