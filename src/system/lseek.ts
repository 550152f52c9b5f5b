/** lseek(2) with SEEK_DATA and SEEK_HOLE. Moves the descriptor's position, which nobody here uses: all I/O names its offset. */
import { declare, lastErrno, SystemError } from './libc';

const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const ENXIO = 6;

const lseek = declare<[number, number, number]>('int64_t lseek(int fd, int64_t offset, int whence)');

function seek(fd: number, offset: number, whence: number): number | undefined {
  const found = lseek(fd, offset, whence);
  if (found >= 0) return found;
  const errno = lastErrno();
  if (errno === ENXIO) return undefined;
  throw new SystemError(errno, 'lseek');
}

/** First byte at or after `offset` that is data; undefined when only a hole or the end follows. */
export function seekData(fd: number, offset: number): number | undefined {
  return seek(fd, offset, SEEK_DATA);
}

/** First byte at or after `offset` that lies in a hole (the end of the file counts as one); undefined at or past the end. */
export function seekHole(fd: number, offset: number): number | undefined {
  return seek(fd, offset, SEEK_HOLE);
}
