/**
 * The only table from what may be thrown to the errno that the kernel gets. The message of an error cannot travel with it: whoever
 * wants it reads the daemon's log.
 */
import * as fs from 'node:fs';
import { constants } from 'node:os';
import { inspect } from 'node:util';
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
 * every later fsync succeed unseen. EINTR and EAGAIN would make the caller repeat what fails for good. EBADF and EFAULT would blame the
 * caller's descriptor or memory for ours.
 */
const NEVER_PASSED_ON: ReadonlySet<number> = new Set(
  ['ENOSYS', 'EINTR', 'EAGAIN', 'EBADF', 'EFAULT'].map((name) => errnoNumber(name)),
);

/** The kernel takes errno numbers up to here. */
const ERRNO_MAX = 511;

/** Errno of the host error at the bottom of the chain of causes; undefined when there is none. */
function hostErrno(error: unknown): number | undefined {
  if (error instanceof BlockError) return hostErrno(error.cause);
  if (!isSystemError(error)) return undefined;
  // By number first: Node has no names for some (EDQUOT is `Unknown system error -122`).
  if (error.errno !== undefined && error.errno < 0 && error.errno >= -ERRNO_MAX) return -error.errno;
  const name = errnoNameOf(error);
  return name === undefined ? undefined : errnoNumber(name);
}

function passedOn(errno: number | undefined): number {
  return errno === undefined || NEVER_PASSED_ON.has(errno) ? constants.errno.EIO : errno;
}

/**
 * The errno, positive, for what an operation threw. What is neither a BlockError nor a FileError nor a host error is a bug in imagefs:
 * it is logged with its stack and becomes EIO.
 */
export function errnoOf(error: unknown): number {
  if (error instanceof FileError) return errnoNumber(error.code);
  if (error instanceof BlockError) {
    log('%s: %s', error.code, error.message);
    return error.code === 'IO' ? passedOn(hostErrno(error)) : errnoNumber(BLOCK_ERROR_ERRNO[error.code]);
  }
  const errno = hostErrno(error);
  if (errno !== undefined) {
    log('host error: %O', error);
    return passedOn(errno);
  }
  reportBug(error);
  return constants.errno.EIO;
}

/** Places of which this thread has logged a stack; bounded, for a bug on the path of every request must not fill the disk. */
const reported = new Set<string>();
const REPORTED_MAX = 100;

/** Logs an exception that should not have happened: each place in the code once a thread. */
export function reportBug(error: unknown): void {
  // Anything can be thrown; `inspect` can show it all.
  const stack = error instanceof Error ? (error.stack ?? error.message) : inspect(error);
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
