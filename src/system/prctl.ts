/** prctl(2). Both settings belong to the calling thread; threads and programs started afterwards inherit the first. */
import { declare, lastErrno, SystemError } from './libc';

const PR_SET_NAME = 15;
const PR_SET_IO_FLUSHER = 57;
const EPERM = 1;
const EINVAL = 22;

/** The kernel keeps 15 bytes of a name. */
const NAME_BYTES_MAX = 15;

const prctlNumber = declare<[number, number, number, number, number]>(
  'int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)',
);
const prctlText = declare<[number, Buffer, number, number, number]>(
  'int prctl(int option, void *a, unsigned long b, unsigned long c, unsigned long d)',
);

/**
 * Marks this thread as one that the kernel may need for writing back dirty memory, so that an allocation of ours never waits for
 * a write to our own mount.
 * @returns false when that is not permitted (needs CAP_SYS_RESOURCE) or the kernel is older than 5.6
 */
export function setIoFlusher(): boolean {
  if (prctlNumber(PR_SET_IO_FLUSHER, 1, 0, 0, 0) >= 0) return true;
  const errno = lastErrno();
  if (errno === EPERM || errno === EINVAL) return false;
  throw new SystemError(errno, 'prctl');
}

/** The name that `ps -o comm` and `top` show: of the process when called on its main thread, else of the thread. */
export function setProcessName(name: string): void {
  const bytes = Buffer.from(`${name}\0`).subarray(0, NAME_BYTES_MAX + 1);
  bytes[bytes.length - 1] = 0;
  if (prctlText(PR_SET_NAME, bytes, 0, 0, 0) < 0) throw new SystemError(lastErrno(), 'prctl');
}
