/** Calls on mounted files that neither Node nor `src/system` has, for tests only. */
import * as koffi from 'koffi';
import { declare, lastError } from '../../src/system/libc';

const libc = koffi.load(null);
const mmap = libc.func('void *mmap(void *address, size_t length, int protection, int flags, int fd, int64_t offset)');
const munmap = libc.func('int munmap(void *address, size_t length)');
const msync = libc.func('int msync(void *address, size_t length, int flags)');
const getxattr = declare<[string, string, Buffer, number]>(
  'int64_t getxattr(const char *path, const char *name, void *value, size_t size)',
);
const setxattr = declare<[string, string, Buffer, number, number]>(
  'int setxattr(const char *path, const char *name, void *value, size_t size, int flags)',
);
const copyFileRange = declare<[number, Buffer, number, Buffer, number, number]>(
  'int64_t copy_file_range(int from, void *from_offset, int to, void *to_offset, size_t length, unsigned int flags)',
);
const fallocateCall = declare<[number, number, number, number]>(
  'int fallocate(int fd, int mode, int64_t offset, int64_t length)',
);
const pwritev2 = declare<[number, Buffer, number, number, number]>(
  'int64_t pwritev2(int fd, void *iov, int count, int64_t offset, int flags)',
);

const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 1;
const MAP_PRIVATE = 2;
const MS_SYNC = 4;
const RWF_DSYNC = 2;

export interface Mapping {
  bytes: Uint8Array;
  /** Writes what has been changed to the file. */
  sync(): void;
  unmap(): void;
}

export function mapFile(fd: number, length: number, kind: 'private' | 'shared'): Mapping {
  const [protection, flags] = kind === 'shared' ? [PROT_READ | PROT_WRITE, MAP_SHARED] : [PROT_READ, MAP_PRIVATE];
  const address = mmap(null, length, protection, flags, fd, 0);
  if (koffi.address(address) === 2n ** 64n - 1n) throw lastError('mmap');
  return {
    bytes: new Uint8Array(koffi.view(address, length)),
    sync: () => {
      if (msync(address, length, MS_SYNC) < 0) throw lastError('msync');
    },
    unmap: () => {
      if (munmap(address, length) < 0) throw lastError('munmap');
    },
  };
}

export function readAttribute(path: string, name: string): number {
  const bytes = getxattr(path, name, Buffer.alloc(16), 16);
  if (bytes < 0) throw lastError('getxattr', path);
  return bytes;
}

export function writeAttribute(path: string, name: string): void {
  if (setxattr(path, name, Buffer.from('x'), 1, 0) < 0) throw lastError('setxattr', path);
}

/** @returns bytes copied */
export function copyRange(from: number, fromOffset: number, to: number, toOffset: number, length: number): number {
  const offsets = [Buffer.alloc(8), Buffer.alloc(8)];
  offsets[0].writeBigInt64LE(BigInt(fromOffset));
  offsets[1].writeBigInt64LE(BigInt(toOffset));
  const copied = copyFileRange(from, offsets[0], to, offsets[1], length, 0);
  if (copied < 0) throw lastError('copy_file_range');
  return copied;
}

/** fallocate(2) with any mode bits. */
export function fallocateBits(fd: number, bits: number, offset: number, length: number): void {
  if (fallocateCall(fd, bits, offset, length) < 0) throw lastError('fallocate');
}

/** One write with RWF_DSYNC on a descriptor that was opened without any such flag. */
export function writeDsync(fd: number, bytes: Buffer, offset: number): number {
  const vector = Buffer.alloc(16);
  vector.writeBigUInt64LE(koffi.address(bytes), 0);
  vector.writeBigUInt64LE(BigInt(bytes.length), 8);
  const written = pwritev2(fd, vector, 1, offset, RWF_DSYNC);
  if (written < 0) throw lastError('pwritev2');
  return written;
}
