/**
 * The only table from what may be thrown to the errno that the kernel gets. The message of an error cannot travel with it: whoever
 * wants it reads the daemon's log.
 */
import * as fs from 'node:fs';
import { constants } from 'node:os';
import { BlockError, type BlockErrorCode, errnoNameOf, isSystemError } from '../errors';
import { logOf } from '../log';
import { FileError } from '../vfs/filesystem';

const log = logOf('fuse:errno');

const numbers: Readonly<Record<string, number>> = constants.errno;

/** Number of an errno name on this platform, positive. */
export function errnoNumber(name: string): number {
  return numbers[name] ?? constants.errno.EIO;
}

const BLOCK_ERROR_ERRNO: Readonly<Record<BlockErrorCode, string>> = {
  INVALID_FORMAT: 'EIO',
  UNSUPPORTED_FEATURE: 'EOPNOTSUPP',
  CORRUPT_IMAGE: 'EIO',
  // What a block device says of anything past its end, and what dd, mkfs and cp print as what it is: the disk is full. EINVAL would
  // blame the caller's arguments. (Reads past the end never get here: they are short.)
  OUT_OF_BOUNDS: 'ENOSPC',
  READ_ONLY: 'EROFS',
  NO_SPACE: 'ENOSPC',
  NOT_FOUND: 'ENOENT',
  BUSY: 'EBUSY',
  DENIED: 'EACCES',
  // Only without a host error as its cause: that one's errno survives.
  IO: 'EIO',
  LIMIT_EXCEEDED: 'EFBIG',
  CANCELLED: 'ECANCELED',
};

/**
 * Host errors that must not pass as they are. ENOSYS is an order to the kernel: it never asks for that operation again and lets
 * every later fsync succeed unseen. EINTR and EAGAIN would make the caller repeat what fails for good. EBADF would blame the caller's
 * descriptor for one of ours.
 */
const NEVER_PASSED_ON: ReadonlySet<string> = new Set(['ENOSYS', 'EINTR', 'EAGAIN', 'EBADF', 'EFAULT']);

function hostErrno(name: string | undefined): number {
  return name === undefined || NEVER_PASSED_ON.has(name) ? constants.errno.EIO : errnoNumber(name);
}

/**
 * The errno, positive, for what an operation threw. What is neither a BlockError nor a FileError nor a host error is a bug in imagefs:
 * it is logged with its stack and becomes EIO.
 */
export function errnoOf(error: unknown): number {
  if (error instanceof FileError) return errnoNumber(error.code);
  if (error instanceof BlockError) {
    log('%s: %s', error.code, error.message);
    return error.code === 'IO' ? hostErrno(error.errnoName) : errnoNumber(BLOCK_ERROR_ERRNO[error.code]);
  }
  if (isSystemError(error) && errnoNameOf(error) !== undefined) {
    log('host error: %s', error.message);
    return hostErrno(error.code);
  }
  reportBug(error);
  return constants.errno.EIO;
}

/** Places of which this thread has logged a stack; bounded, for a bug on the path of every request must not fill the disk. */
const reported = new Set<string>();
const REPORTED_MAX = 100;

/** Logs an exception that should not have happened: each place in the code once a thread. */
export function reportBug(error: unknown): void {
  const stack = error instanceof Error ? (error.stack ?? error.message) : String(error);
  const place = stack.split('\n').find((line) => /^\s+at /.test(line)) ?? stack;
  if (reported.has(place) || reported.size >= REPORTED_MAX) return;
  reported.add(place);
  printLine(`imagefs: internal error, please report it (answered EIO; shown once): ${stack}`);
}

/** Straight to descriptor 2: a worker's `process.stderr` needs the main thread, which may be busy or gone. */
export function printLine(text: string): void {
  try {
    fs.writeSync(2, `${text}\n`);
  } catch {
    // Nobody listens any more; a request must get its answer all the same.
  }
}
