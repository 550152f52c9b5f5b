import { AssertionError } from 'node:assert';
import { constants } from 'node:os';
import test from 'ava';
import { BlockError, type BlockErrorCode } from '../../../src/errors';
import { errnoOf } from '../../../src/fuse/errno';
import { SystemError } from '../../../src/system/libc';
import { FileError, type FileErrorCode } from '../../../src/vfs/filesystem';

const { errno } = constants;

test('errnoOf() has a number for each code of a BlockError', (t) => {
  const table: Record<BlockErrorCode, number> = {
    INVALID_FORMAT: errno.EIO,
    UNSUPPORTED_FEATURE: errno.EOPNOTSUPP,
    CORRUPT_IMAGE: errno.EIO,
    OUT_OF_BOUNDS: errno.ENOSPC,
    READ_ONLY: errno.EROFS,
    NO_SPACE: errno.ENOSPC,
    NOT_FOUND: errno.ENOENT,
    BUSY: errno.EBUSY,
    DENIED: errno.EACCES,
    IO: errno.EIO,
    LIMIT_EXCEEDED: errno.EFBIG,
    CANCELLED: errno.ECANCELED,
  };
  for (const [code, number] of Object.entries(table))
    t.is(errnoOf(new BlockError(code as BlockErrorCode, 'x')), number);
});

test('errnoOf() has the number of each FileError', (t) => {
  for (const code of ['ENOENT', 'EPERM', 'EROFS', 'EISDIR', 'ENOTDIR', 'EINVAL', 'ENXIO', 'ENOSPC', 'EFBIG'] as const) {
    t.is(errnoOf(new FileError(code satisfies FileErrorCode)), errno[code]);
  }
});

test('errnoOf() lets the host error below an IO error survive, through several layers', (t) => {
  const cause = new SystemError(errno.EDQUOT, 'pwrite64');
  t.is(cause.code, 'EDQUOT');
  const inner = new BlockError('IO', 'Cannot write', { cause });
  t.is(errnoOf(new BlockError('IO', 'Cannot allocate', { cause: inner })), errno.EDQUOT);
  // As Node names it where libuv has no name.
  const unnamed = Object.assign(new Error('x'), { code: 'Unknown system error -122', errno: -122 });
  t.is(errnoOf(new BlockError('IO', 'Cannot write', { cause: unnamed })), 122);
  t.is(errnoOf(new BlockError('NO_SPACE', 'full', { cause })), errno.ENOSPC);
});

test('errnoOf() never passes ENOSYS, EINTR, EAGAIN or EBADF of the host on', (t) => {
  for (const number of [errno.ENOSYS, errno.EINTR, errno.EAGAIN, errno.EBADF]) {
    t.is(errnoOf(new BlockError('IO', 'x', { cause: new SystemError(number, 'fdatasync') })), errno.EIO);
    t.is(errnoOf(new SystemError(number, 'fdatasync')), errno.EIO);
  }
});

test('errnoOf() answers EIO for whatever else is thrown', (t) => {
  const thrown = [
    new AssertionError({ message: 'x' }),
    new TypeError('x'),
    new RangeError('x'),
    'text',
    undefined,
    null,
    5,
  ];
  for (const value of thrown) t.is(errnoOf(value), errno.EIO);
  t.is(errnoOf(Object.assign(new Error('x'), { code: 'ERR_OUT_OF_RANGE' })), errno.EIO);
});
