/**
 * Errors that people and programs can tell apart.
 *
 * An operating error (a bad image, a full disk, a read-only layer) is a `BlockError` with one of a small closed set of
 * codes. A programmer's error is an `AssertionError`: the FUSE border logs it with its stack and answers EIO.
 */

/** Every code, with what it means to the caller. `docs/errors.md` explains each. */
export type BlockErrorCode =
  | 'INVALID_FORMAT' // the file is not what the caller said, or its header makes no sense
  | 'UNSUPPORTED_FEATURE' // valid, but needs something this version does not have
  | 'CORRUPT_IMAGE' // tables contradict the file: exactly the clusters concerned fail
  | 'OUT_OF_BOUNDS' // past the end of the disk
  | 'READ_ONLY' // a layer, a snapshot, a read-only mount
  | 'NO_SPACE' // no room left: in the host file system or past the end of a fixed disk
  | 'NOT_FOUND' // a file that is named does not exist
  | 'BUSY' // somebody else holds the image, the mountpoint or the node
  | 'DENIED' // permission, or the gate for files that images name
  | 'IO' // the host failed; the cause's errno survives
  | 'LIMIT_EXCEEDED' // larger than a limit of the specification or of ours
  | 'CANCELLED'; // stopped on request

export interface BlockErrorContext {
  /** The file concerned, as the user named it. */
  path?: string;
  /** Byte offset concerned; the message says whether guest or host. */
  offset?: number;
  cause?: unknown;
}

/** An operating error. The message says the action, the quoted file, the value found and what is allowed. */
export class BlockError extends Error {
  readonly code: BlockErrorCode;
  readonly path?: string;
  readonly offset?: number;

  constructor(code: BlockErrorCode, message: string, context: BlockErrorContext = {}) {
    super(message, context.cause === undefined ? undefined : { cause: context.cause });
    this.name = 'BlockError';
    this.code = code;
    if (context.path !== undefined) this.path = context.path;
    if (context.offset !== undefined) this.offset = context.offset;
  }

  /** `errno` name of the host error at the bottom of the chain of causes (`ENOSPC`), if there is one. */
  get errnoName(): string | undefined {
    return errnoNameOf(this.cause);
  }
}

/**
 * Text for one line of a terminal. Names in it may come from images, which are untrusted: characters that could start a line of
 * their own, command the terminal or turn the letters round are shown as `\x1b`.
 */
export function visible(text: string): string {
  return text.replace(/(?!\t)[\p{Cc}\p{Bidi_Control}]/gu, (character) => {
    const code = character.charCodeAt(0).toString(16);
    return code.length > 2 ? `\\u${code.padStart(4, '0')}` : `\\x${code.padStart(2, '0')}`;
  });
}

/** Shape of errors thrown by Node's fs and by `system/`. */
export interface SystemErrorLike extends Error {
  code: string;
  errno?: number;
  syscall?: string;
}

export function isSystemError(error: unknown): error is SystemErrorLike {
  return (
    error instanceof Error && typeof (error as { code?: unknown }).code === 'string' && !(error instanceof BlockError)
  );
}

/** Numbers that Node gives no name to ("Unknown system error -122"). */
const UNNAMED = new Map([[122, 'EDQUOT']]);

/** `ENOSPC`, `EIO`, ... of a host error or of a BlockError caused by one; undefined when there is none. */
export function errnoNameOf(error: unknown): string | undefined {
  if (error instanceof BlockError) return error.errnoName;
  if (!isSystemError(error)) return undefined;
  return /^E[A-Z0-9]+$/.test(error.code) ? error.code : UNNAMED.get(Math.abs(error.errno ?? 0));
}

/** The words of strerror(3) for the host errors that people meet; the name itself for the rest. */
const ERRNO_WORDS: Record<string, string> = {
  EACCES: 'Permission denied',
  EAGAIN: 'Resource temporarily unavailable',
  EDQUOT: 'Disk quota exceeded',
  EBUSY: 'Device or resource busy',
  EEXIST: 'File exists',
  EFBIG: 'File too large',
  EINVAL: 'Invalid argument',
  EIO: 'Input/output error',
  EISDIR: 'Is a directory',
  ELOOP: 'Too many levels of symbolic links',
  EMFILE: 'Too many open files',
  ENAMETOOLONG: 'File name too long',
  ENODEV: 'No such device',
  ENOENT: 'No such file or directory',
  ENOSPC: 'No space left on device',
  ENOTCONN: 'Transport endpoint is not connected',
  ENOTDIR: 'Not a directory',
  ENXIO: 'No such device or address',
  EOPNOTSUPP: 'Operation not supported',
  EPERM: 'Operation not permitted',
  EROFS: 'Read-only file system',
  ETXTBSY: 'Text file busy',
};

/** What happened, in the words that every Unix tool uses: `No such file or directory`. */
export function describeHostError(error: unknown): string {
  const name = errnoNameOf(error);
  if (name !== undefined) return ERRNO_WORDS[name] ?? name;
  return error instanceof Error ? error.message : String(error);
}

/**
 * Turns a host error into a BlockError that says what was being done.
 * A BlockError passes unchanged: it already says more than this place knows.
 *
 * @param action what failed, e.g. `Cannot open "a.qed"`
 */
export function hostError(error: unknown, action: string, context: BlockErrorContext = {}): BlockError {
  if (error instanceof BlockError) return error;
  const name = errnoNameOf(error);
  const code: BlockErrorCode =
    name === 'ENOENT' || name === 'ENOTDIR'
      ? 'NOT_FOUND'
      : name === 'EACCES' || name === 'EPERM'
        ? 'DENIED'
        : name === 'ENOSPC' || name === 'EDQUOT'
          ? 'NO_SPACE'
          : name === 'EROFS'
            ? 'READ_ONLY'
            : 'IO';
  return new BlockError(code, `${action}: ${describeHostError(error)}`, { ...context, cause: error });
}

/** `0x1f0000`: how offsets and on-disk values are written in messages. */
export function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}
