/** Descriptors as such: fcntl(2). */
import { declare, lastError } from './libc';

const F_DUPFD_CLOEXEC = 1030;

const fcntl = declare<[number, number, number]>('int fcntl(int fd, int command, long argument)');

/** A second descriptor for the same open file, closed on exec: stays what it is when others close theirs. */
export function duplicateDescriptor(fd: number): number {
  const copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) throw lastError('fcntl');
  return copy;
}
