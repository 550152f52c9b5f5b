/** Reading ahead of a read: preadv2(2) that does not wait. */
import { constants } from 'node:os';
import { alignedBuffer } from './aligned-buffer';
import { blocksRead } from './blocks-read';
import { koffi } from './koffi';
import { declare, declareOptional, lastErrno } from './libc';

const { EAGAIN } = constants.errno;

const RWF_NOWAIT = 0x8;
const POSIX_FADV_WILLNEED = 3;

/** Nobody looks at what lands here. Each thread has its own: modules are loaded once a thread. */
const unread = alignedBuffer(64 * 1024, 0);
/** struct iovec: base u64, length u64. */
const vector = Buffer.alloc(16);
vector.writeBigUInt64LE(koffi.address(unread), 0);

/** On 64-bit Linux the C library's offset is one register, as in the prototype. Undefined: it is too old (musl before 1.2.5). */
const preadv2 = declareOptional<[number, Buffer, number, number, number]>(
  'int64_t preadv2(int fd, void *vector, int count, int64_t offset, int flags)',
);
const posixFadvise = declare<[number, number, number, number]>(
  'int posix_fadvise(int fd, int64_t offset, int64_t length, int advice)',
);

/**
 * Whether this kernel begins reads with RWF_NOWAIT: 6.12 does, 6.1 only looks (both tried, ext4). True once a call of this thread has begun one.
 */
let begins = false;

/**
 * The kernel starts to read the range into its page cache, as it would for a read, and does not wait. Unlike posix_fadvise(2) with WILLNEED this
 * counts as a read for the kernel's readahead, which goes on recognising who reads one block after the other. What is too much for one
 * call is left to the read itself. Old kernels, and file systems that refuse (NFS, FUSE, vfat), are advised instead. A hint: nobody learns of
 * a failure.
 */
export function startReading(fd: number, offset: number, length: number): void {
  const count = Math.min(length, unread.length);
  if (preadv2 !== undefined) {
    vector.writeUInt32LE(count, 8);
    const before = begins ? 0 : blocksRead();
    const got = preadv2(fd, vector, 1, offset, RWF_NOWAIT);
    if (got === count) return;
    if (got < 0 && lastErrno() === EAGAIN) {
      begins ||= blocksRead() !== before;
      if (begins) return;
    }
  }
  posixFadvise(fd, offset, count, POSIX_FADV_WILLNEED);
}
