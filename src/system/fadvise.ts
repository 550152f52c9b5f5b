/** posix_fadvise(2): what a program is about to do with a file. */
import { declare } from './libc';

const POSIX_FADV_WILLNEED = 3;

const posixFadvise = declare<[number, number, number, number]>(
  'int posix_fadvise(int fd, int64_t offset, int64_t length, int advice)',
);

/** The kernel starts to read the range into its page cache and does not wait for it. A hint: that it cannot is no failure. */
export function willNeed(fd: number, offset: number, length: number): void {
  posixFadvise(fd, offset, length, POSIX_FADV_WILLNEED);
}
