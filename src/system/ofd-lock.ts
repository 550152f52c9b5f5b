/**
 * Byte-range locks that belong to an open file description (fcntl(2), "Open file description locks"): two descriptors of one
 * process can exclude each other, and closing an unrelated descriptor of the same file does not drop them, as it does POSIX locks.
 */
import { declare, lastErrno, SystemError } from './libc';

const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;
const EINTR = 4;
const EAGAIN = 11;
const EACCES = 13;

/**
 * struct flock, 32 bytes on x86-64 and arm64: l_type u16 at 0, l_whence u16 at 2 (0: SEEK_SET), l_start i64 at 8, l_len i64 at 16,
 * l_pid i32 at 24 (must be 0 for these commands).
 */
const FLOCK_BYTES = 32;
const flock = Buffer.alloc(FLOCK_BYTES);

const fcntl = declare<[number, number, Buffer]>('int fcntl(int fd, int command, void *lock)');

export type LockType = 'read' | 'write';

function command(fd: number, name: number, type: number, start: number, length: number): number {
  flock.fill(0);
  flock.writeUInt16LE(type, 0);
  flock.writeBigInt64LE(BigInt(start), 8);
  flock.writeBigInt64LE(BigInt(length), 16);
  for (;;) {
    if (fcntl(fd, name, flock) >= 0) return 0;
    const errno = lastErrno();
    if (errno !== EINTR) return errno;
  }
}

function typeOf(type: LockType): number {
  return type === 'read' ? F_RDLCK : F_WRLCK;
}

/**
 * Takes the lock, or changes the type of one that this descriptor has, without waiting.
 * A write lock needs a descriptor open for writing.
 *
 * @param length bytes; 0 means to the end of the file, however far it grows
 * @returns false when somebody else holds a conflicting lock
 */
export function tryLock(fd: number, type: LockType, start: number, length: number): boolean {
  const errno = command(fd, F_OFD_SETLK, typeOf(type), start, length);
  if (errno === 0) return true;
  if (errno === EAGAIN || errno === EACCES) return false;
  throw new SystemError(errno, 'fcntl');
}

/** Gives up what this descriptor holds in the range; nothing happens when it holds nothing there. */
export function unlock(fd: number, start: number, length: number): void {
  const errno = command(fd, F_OFD_SETLK, F_UNLCK, start, length);
  if (errno !== 0) throw new SystemError(errno, 'fcntl');
}

/** Could the lock be taken now? Takes nothing; locks of this descriptor do not stand in its own way. */
export function testLock(fd: number, type: LockType, start: number, length: number): boolean {
  const errno = command(fd, F_OFD_GETLK, typeOf(type), start, length);
  if (errno !== 0) throw new SystemError(errno, 'fcntl');
  return flock.readUInt16LE(0) === F_UNLCK;
}
