/** memfd_create(2): a file that lies in memory and has no path. */
import { declare, lastError } from './libc';

const MFD_CLOEXEC = 1;

const memfdCreateCall = declare<[string, number]>('int memfd_create(const char *name, unsigned int flags)');

/**
 * @param name for `ls -l /proc/PID/fd` only; at most 249 bytes
 * @returns a descriptor, open for reading and writing, closed on exec
 */
export function memfdCreate(name: string): number {
  const fd = memfdCreateCall(name, MFD_CLOEXEC);
  if (fd < 0) throw lastError('memfd_create', name);
  return fd;
}
