/** What this thread has read from block devices: getrusage(2). */
import { declare } from './libc';

const RUSAGE_THREAD = 1;
/** struct rusage on 64-bit Linux; ru_inblock. */
const RUSAGE_BYTES = 144;
const RU_INBLOCK = 88;

const usage = Buffer.alloc(RUSAGE_BYTES);
const getrusage = declare<[number, Buffer]>('int getrusage(int who, void *usage)');

/**
 * How much this thread has had read from block devices, in units of 512 bytes. Grows when a read begins, not when it ends. File systems without
 * a device (NFS, FUSE, tmpfs) do not count.
 */
export function blocksRead(): number {
  getrusage(RUSAGE_THREAD, usage);
  return usage.readUInt32LE(RU_INBLOCK);
}
