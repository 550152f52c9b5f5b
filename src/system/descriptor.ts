/** Descriptors as such (fcntl(2)), and reading those that do not block. */
import { declare, lastError } from './libc';

const F_DUPFD_CLOEXEC = 1030;

const fcntl = declare<[number, number, number]>('int fcntl(int fd, int command, long argument)');

/** A second descriptor for the same open file, closed on exec: stays what it is when others close theirs. */
export function duplicateDescriptor(fd: number): number {
  const copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) throw lastError('fcntl');
  return copy;
}

const readCall = declare<[number, Buffer, number]>('int64_t read(int fd, void *target, size_t length)');

/**
 * read(2) on a descriptor with O_NONBLOCK. That there is nothing to read is no error here, and so costs no exception.
 * @returns bytes read; negative when there are none, or for an error, which the next blocking read will meet
 */
export function readIfReady(fd: number, target: Buffer): number {
  return readCall(fd, target, target.length);
}
