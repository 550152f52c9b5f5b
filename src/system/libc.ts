/**
 * The C library of this process, and errors shaped like those of Node's fs.
 *
 * Each module declares its functions once, when it is loaded: a call then costs about 0.2 us. Functions that C declares as variadic
 * (ioctl, fcntl, syscall) are declared here with fixed arguments: on Linux x86-64 and arm64 both kinds pass integers the same way.
 * Off_t and size_t arguments are plain numbers.
 */
import { constants } from 'node:os';
import { getSystemErrorMap } from 'node:util';
import type { KoffiFunc } from 'koffi';
import type { SystemErrorLike } from '../errors';
import { koffi } from './koffi';

/** `null` stands for what the process has loaded already, so the name of the C library (glibc, musl) does not matter. */
const libc = koffi.load(null);

const EINTR = 4;

/** A call into the C library; `async` runs it on a thread of libuv's pool. */
export type LibcFunction<Arguments extends unknown[]> = KoffiFunc<(...args: Arguments) => number>;

/** @param prototype as in the manual page, e.g. `int close(int fd)` */
export function declare<Arguments extends unknown[]>(prototype: string): LibcFunction<Arguments> {
  return libc.func(prototype) as LibcFunction<Arguments>;
}

/** As `declare`, of a function whose result is something else. */
export function declareOther<Arguments extends unknown[], Result>(
  prototype: string,
): KoffiFunc<(...args: Arguments) => Result> {
  return libc.func(prototype) as KoffiFunc<(...args: Arguments) => Result>;
}

/** As `declare`; undefined when this C library does not have it. */
export function declareOptional<Arguments extends unknown[]>(prototype: string): LibcFunction<Arguments> | undefined {
  try {
    return declare<Arguments>(prototype);
  } catch {
    return undefined;
  }
}

/** errno of this thread's last failed call. */
export function lastErrno(): number {
  return koffi.errno();
}

/** Words of libuv, which knows only some errors by name, and not EDQUOT. */
const systemErrors = getSystemErrorMap();

/** Number 95 is called EOPNOTSUPP, as the manual pages of the calls made here do, and 11 EAGAIN. */
const errnoNames: ReadonlyMap<number, string> = new Map(
  Object.entries(constants.errno)
    .filter(([name]) => name !== 'ENOTSUP' && name !== 'EWOULDBLOCK')
    .map(([name, number]) => [number, name]),
);

/** An Error with the fields of Node's fs errors: `code` `ENOSPC`, `errno` -28, `syscall`, `path`. */
export class SystemError extends Error implements SystemErrorLike {
  readonly code: string;
  /** Negative, as in Node. */
  readonly errno: number;
  readonly syscall: string;
  readonly path?: string;

  constructor(errno: number, syscall: string, path?: string) {
    const code = errnoNames.get(errno) ?? `E${errno}`;
    const words = systemErrors.get(-errno)?.[1] ?? 'unknown error';
    super(`${code}: ${words}, ${syscall}${path === undefined ? '' : ` '${path}'`}`);
    this.name = 'SystemError';
    this.code = code;
    this.errno = -errno;
    this.syscall = syscall;
    if (path !== undefined) this.path = path;
  }
}

/** The error of the call that has just failed on this thread. */
export function lastError(syscall: string, path?: string): SystemError {
  return new SystemError(lastErrno(), syscall, path);
}

/**
 * Whether a call that answered `result` must be made again because a signal cut it short; throws for every other failure.
 * For calls that change nothing when they are cut short, or that may be made twice.
 */
export function interrupted(result: number, syscall: string, path?: string): boolean {
  if (result >= 0) return false;
  const errno = lastErrno();
  if (errno !== EINTR) throw new SystemError(errno, syscall, path);
  return true;
}
