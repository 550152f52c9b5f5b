/** Reading ahead of a read: preadv2(2) that does not wait. */
import * as koffi from 'koffi';
import { alignedBuffer } from './aligned-buffer';
import { declare } from './libc';

const RWF_NOWAIT = 0x8;

/** Nobody looks at what lands here. Each thread has its own: modules are loaded once a thread. */
const unread = alignedBuffer(64 * 1024, 0);
/** struct iovec: base u64, length u64. */
const vector = Buffer.alloc(16);
vector.writeBigUInt64LE(koffi.address(unread), 0);

/** On 64-bit Linux the C library's offset is one register, as in the prototype. */
const preadv2 = declare<[number, Buffer, number, number, number]>(
  'int64_t preadv2(int fd, void *vector, int count, int64_t offset, int flags)',
);

/**
 * The kernel starts to read the range into its page cache, as it would for a read, and does not wait. Unlike posix_fadvise(2) with WILLNEED this
 * counts as a read for the kernel's readahead, which goes on recognising who reads one block after the other. What is too much for one
 * call is left to the read itself. A hint: that a file system cannot do it is no failure, and nothing happens then.
 */
export function startReading(fd: number, offset: number, length: number): void {
  vector.writeUInt32LE(Math.min(length, unread.length), 8);
  preadv2(fd, vector, 1, offset, RWF_NOWAIT);
}
