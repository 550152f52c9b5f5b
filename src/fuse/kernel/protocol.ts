/**
 * The FUSE protocol of Linux (include/uapi/linux/fuse.h, version 7.40), as far as we speak it: numbers and places of fields.
 * Little-endian hosts only (x86-64, arm64), so that fields are read as they lie in memory.
 *
 * A request is a header of 40 bytes, then the body of its opcode; a reply is a header of 16 bytes, then its body. Places of fields of
 * a request are counted from the start of the request, of a reply from the start of its body.
 */
import { MAX_REQUEST } from '../session';

export const PROTOCOL_MAJOR = 7;
/** The newest minor version we know. */
export const PROTOCOL_MINOR = 40;
/** The oldest that has the INIT reply of 64 bytes (Linux 3.15); all structures used here are older. */
export const PROTOCOL_MINOR_MIN = 23;

export const OPCODE = {
  LOOKUP: 1,
  FORGET: 2,
  GETATTR: 3,
  SETATTR: 4,
  READLINK: 5,
  SYMLINK: 6,
  MKNOD: 8,
  MKDIR: 9,
  UNLINK: 10,
  RMDIR: 11,
  RENAME: 12,
  LINK: 13,
  OPEN: 14,
  READ: 15,
  WRITE: 16,
  STATFS: 17,
  RELEASE: 18,
  FSYNC: 20,
  SETXATTR: 21,
  GETXATTR: 22,
  LISTXATTR: 23,
  REMOVEXATTR: 24,
  FLUSH: 25,
  INIT: 26,
  OPENDIR: 27,
  READDIR: 28,
  RELEASEDIR: 29,
  FSYNCDIR: 30,
  ACCESS: 34,
  CREATE: 35,
  INTERRUPT: 36,
  DESTROY: 38,
  IOCTL: 39,
  POLL: 40,
  NOTIFY_REPLY: 41,
  BATCH_FORGET: 42,
  FALLOCATE: 43,
  RENAME2: 45,
  LSEEK: 46,
  COPY_FILE_RANGE: 47,
  TMPFILE: 51,
} as const;

/** struct fuse_in_header */
export const IN = { LENGTH: 0, OPCODE: 4, UNIQUE: 8, NODE: 16 } as const;
export const IN_HEADER_BYTES = 40;

/** struct fuse_out_header */
export const OUT = { LENGTH: 0, ERROR: 4, UNIQUE: 8 } as const;
export const OUT_HEADER_BYTES = 16;

/** struct fuse_init_in, fuse_init_out */
export const INIT_IN = { MAJOR: 40, MINOR: 44, MAX_READAHEAD: 48, FLAGS: 52, FLAGS2: 56 } as const;
export const INIT_OUT = {
  MAJOR: 0,
  MINOR: 4,
  MAX_READAHEAD: 8,
  FLAGS: 12,
  MAX_BACKGROUND: 16,
  CONGESTION_THRESHOLD: 18,
  MAX_WRITE: 20,
  TIME_GRANULARITY: 24,
  MAX_PAGES: 28,
  FLAGS2: 32,
  BYTES: 64,
} as const;

export const INIT_FLAG = {
  ASYNC_READ: 2 ** 0,
  ATOMIC_O_TRUNC: 2 ** 3,
  BIG_WRITES: 2 ** 5,
  AUTO_INVAL_DATA: 2 ** 12,
  ASYNC_DIO: 2 ** 15,
  WRITEBACK_CACHE: 2 ** 16,
  PARALLEL_DIROPS: 2 ** 18,
  MAX_PAGES: 2 ** 22,
  INIT_EXT: 2 ** 30,
} as const;

/** Bits of `flags2`: the protocol's bits 32 to 63. */
export const INIT_FLAG2 = { DIRECT_IO_ALLOW_MMAP: 2 ** 4 } as const;

export const OPEN_IN = { FLAGS: 40 } as const;
export const OPEN_OUT = { HANDLE: 0, FLAGS: 8, BYTES: 16 } as const;
export const FOPEN_DIRECT_IO = 1;
export const FOPEN_KEEP_CACHE = 2;
export const FOPEN_PARALLEL_DIRECT_WRITES = 64;

/** struct fuse_read_in and fuse_write_in have the same fields; the data of a write follows at `DATA`. */
export const IO_IN = { HANDLE: 40, OFFSET: 48, SIZE: 56, FLAGS: 72, DATA: 80 } as const;
export const WRITE_OUT = { SIZE: 0, BYTES: 8 } as const;

/** Where the handle lies in RELEASE, FLUSH, FSYNC, READDIR, FALLOCATE, LSEEK and COPY_FILE_RANGE: first in the body. */
export const HANDLE_AT = 40;

export const SETATTR_IN = { VALID: 40, SIZE: 56 } as const;
export const FATTR_MODE = 1;
export const FATTR_UID = 2;
export const FATTR_GID = 4;
export const FATTR_SIZE = 8;

export const FALLOCATE_IN = { OFFSET: 48, LENGTH: 56, MODE: 64 } as const;
export const FALLOC_KEEP_SIZE = 0x01;
export const FALLOC_PUNCH_HOLE = 0x02;
export const FALLOC_ZERO_RANGE = 0x10;

export const LSEEK_IN = { OFFSET: 48, WHENCE: 56 } as const;
export const LSEEK_OUT = { OFFSET: 0, BYTES: 8 } as const;
export const SEEK_DATA = 3;
export const SEEK_HOLE = 4;

/** Where names begin; two of them follow one another, each with its NUL. */
export const MKDIR_IN = { NAME: 48 } as const;
export const RENAME_IN = { NEW_PARENT: 40, NAMES: 48 } as const;
export const RENAME2_IN = { NEW_PARENT: 40, FLAGS: 48, NAMES: 56 } as const;
export const RENAME_NOREPLACE = 1;

export const COPY_IN = { OFFSET_IN: 48, NODE_OUT: 56, HANDLE_OUT: 64, OFFSET_OUT: 72, LENGTH: 80 } as const;

/** struct fuse_attr */
export const ATTR = {
  INO: 0,
  SIZE: 8,
  BLOCKS: 16,
  ATIME: 24,
  MTIME: 32,
  CTIME: 40,
  ATIME_NS: 48,
  MTIME_NS: 52,
  CTIME_NS: 56,
  MODE: 60,
  NLINK: 64,
  UID: 68,
  GID: 72,
  RDEV: 76,
  BLKSIZE: 80,
  FLAGS: 84,
  BYTES: 88,
} as const;

export const ATTR_OUT = { VALID: 0, VALID_NS: 8, ATTR: 16, BYTES: 104 } as const;
export const ENTRY_OUT = {
  NODE: 0,
  GENERATION: 8,
  ENTRY_VALID: 16,
  ATTR_VALID: 24,
  ENTRY_VALID_NS: 32,
  ATTR_VALID_NS: 36,
  ATTR: 40,
  BYTES: 128,
} as const;

export const STATFS_OUT = {
  BLOCKS: 0,
  BFREE: 8,
  BAVAIL: 16,
  FILES: 24,
  FFREE: 32,
  BSIZE: 40,
  NAMELEN: 44,
  FRSIZE: 48,
  BYTES: 80,
} as const;

/** struct fuse_dirent; the name follows, padded with zeroes to a multiple of 8. */
export const DIRENT = { INO: 0, OFFSET: 8, NAME_LENGTH: 16, TYPE: 20, NAME: 24 } as const;
export const DT_DIR = 4;
export const DT_REG = 8;

export const S_IFDIR = 0o040000;
export const S_IFREG = 0o100000;

/** O_DSYNC of x86-64 and arm64; O_SYNC contains it. */
export const O_DSYNC = 0o10000;
export const O_TRUNC = 0o1000;
export const O_ACCMODE = 3;

/** Pages a request may carry: 1 MiB of 4 KiB pages. */
export const MAX_PAGES = MAX_REQUEST / 4096;

/** A READ as a whole, and the fixed part of a WRITE. */
export const READ_BYTES = IO_IN.DATA;

/** Largest request: a WRITE. The kernel refuses a read(2) that offers less than header, fuse_write_in and `max_write`. */
export const REQUEST_BYTES = IO_IN.DATA + MAX_REQUEST + 4096;

/** Smallest length of a whole request by opcode; what is shorter is malformed. Others need the header only. */
export const REQUEST_BYTES_MIN: Readonly<Uint16Array> = shortest([
  [OPCODE.LOOKUP, 42],
  [OPCODE.SETATTR, 128],
  [OPCODE.MKDIR, 50],
  [OPCODE.RMDIR, 42],
  [OPCODE.RENAME, 52],
  [OPCODE.RENAME2, 60],
  [OPCODE.OPEN, 48],
  [OPCODE.READ, READ_BYTES],
  [OPCODE.WRITE, 80],
  [OPCODE.RELEASE, 64],
  [OPCODE.FSYNC, 56],
  [OPCODE.INIT, 56],
  [OPCODE.READDIR, 80],
  [OPCODE.FALLOCATE, 72],
  [OPCODE.LSEEK, 64],
  [OPCODE.COPY_FILE_RANGE, 96],
]);

function shortest(lengths: readonly (readonly [opcode: number, bytes: number])[]): Uint16Array {
  const table = new Uint16Array(64).fill(IN_HEADER_BYTES);
  for (const [opcode, bytes] of lengths) table[opcode] = bytes;
  return table;
}
