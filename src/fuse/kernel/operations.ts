/**
 * Operations off the hot path. Each serves the channel's current request to its end with one reply, or throws what the file system
 * threw; the loop turns that into the reply.
 */
import { constants } from 'node:os';
import { logOf } from '../../log';
import { MIB } from '../../units';
import { type DirectoryEntry, type FallocateMode, FileError, type FileSystem } from '../../vfs/filesystem';
import { printLine } from '../errno';
import { type KernelServeOptions, MAX_REQUEST } from '../session';
import type { Channel } from './channel';
import {
  encodeAttributesReply,
  encodeDirectoryEntry,
  encodeEntry,
  encodeOffset,
  encodeOpened,
  encodeStatistics,
  encodeWritten,
} from './codec';
import { encodeInit, negotiate, parseInit } from './init';
import {
  COPY_IN,
  FALLOC_KEEP_SIZE,
  FALLOC_PUNCH_HOLE,
  FALLOC_ZERO_RANGE,
  FALLOCATE_IN,
  FATTR_GID,
  FATTR_MODE,
  FATTR_SIZE,
  FATTR_UID,
  FOPEN_DIRECT_IO,
  FOPEN_KEEP_CACHE,
  FOPEN_PARALLEL_DIRECT_WRITES,
  HANDLE_AT,
  IN,
  IN_HEADER_BYTES,
  IO_IN,
  LSEEK_IN,
  MKDIR_IN,
  O_ACCMODE,
  O_TRUNC,
  OPEN_IN,
  OUT_HEADER_BYTES,
  RENAME_IN,
  RENAME_NOREPLACE,
  RENAME2_IN,
  SEEK_DATA,
  SEEK_HOLE,
  SETATTR_IN,
} from './protocol';

const log = logOf('fuse:kernel');

const BODY = OUT_HEADER_BYTES;

/** O_RDONLY, O_WRONLY */
const READ_ONLY = 0;
const WRITE_ONLY = 1;

/** Most bytes copied by one COPY_FILE_RANGE; the caller asks again for the rest, and can be interrupted in between. */
const COPY_BYTES_MAX = 8 * MIB;

/** Throws for offsets that a number cannot hold exactly: no disk is that large. */
function checkOffset(value: number): void {
  if (!Number.isSafeInteger(value)) throw new FileError('EFBIG', `offset ${value} is too large`);
}

export function serveInit(channel: Channel, options: KernelServeOptions, length: number): void {
  const request = parseInit(channel, length);
  const reply = negotiate(request, options);
  if (reply === undefined) {
    printLine(`imagefs: the kernel speaks FUSE ${request.major}.${request.minor}, 7.23 or newer is needed`);
    channel.answerError(constants.errno.EPROTO);
    return;
  }
  log('kernel offers %o, we answer %o', request, reply);
  channel.answer(encodeInit(channel.reply, BODY, reply));
}

export function serveLookup(channel: Channel, fileSystem: FileSystem, length: number): void {
  const ino = fileSystem.lookup(channel.u64(IN.NODE), channel.text(IN_HEADER_BYTES, length));
  channel.answer(encodeEntry(channel.reply, BODY, fileSystem.attributes(ino)));
}

export function serveMakeDirectory(channel: Channel, fileSystem: FileSystem, length: number): void {
  const ino = fileSystem.makeDirectory(channel.u64(IN.NODE), channel.text(MKDIR_IN.NAME, length));
  channel.answer(encodeEntry(channel.reply, BODY, fileSystem.attributes(ino)));
}

export function serveRemoveDirectory(channel: Channel, fileSystem: FileSystem, length: number): void {
  fileSystem.removeDirectory(channel.u64(IN.NODE), channel.text(IN_HEADER_BYTES, length), true);
  channel.answer(0);
}

/** @param namesAt where the two names begin */
export function serveRename(channel: Channel, fileSystem: FileSystem, namesAt: number, length: number): void {
  const name = channel.text(namesAt, length);
  const newName = channel.text(channel.endOfText(namesAt, length) + 1, length);
  fileSystem.rename(channel.u64(IN.NODE), name, channel.u64(RENAME_IN.NEW_PARENT), newName);
  channel.answer(0);
}

/** Nothing is ever replaced, so NOREPLACE asks for nothing; exchanging and whiteouts make no sense here. */
export function serveRename2(channel: Channel, fileSystem: FileSystem, length: number): void {
  if ((channel.u32(RENAME2_IN.FLAGS) & ~RENAME_NOREPLACE) !== 0) throw new FileError('EINVAL');
  serveRename(channel, fileSystem, RENAME2_IN.NAMES, length);
}

export function serveGetAttributes(channel: Channel, fileSystem: FileSystem): void {
  const attributes = fileSystem.attributes(channel.u64(IN.NODE));
  channel.answer(encodeAttributesReply(channel.reply, BODY, attributes));
}

/**
 * O_TRUNC arrives here too. The reply carries the size as it is now: when a fixed disk has ignored the change, the kernel sees its old
 * size and drops nothing. Times are accepted and ignored.
 */
export function serveSetAttributes(channel: Channel, fileSystem: FileSystem): void {
  const valid = channel.u32(SETATTR_IN.VALID);
  if ((valid & (FATTR_MODE | FATTR_UID | FATTR_GID)) !== 0) {
    channel.answerError(constants.errno.EPERM);
    return;
  }
  const ino = channel.u64(IN.NODE);
  if ((valid & FATTR_SIZE) !== 0) {
    const size = channel.u64(SETATTR_IN.SIZE);
    checkOffset(size);
    fileSystem.setSize(ino, size);
  }
  channel.answer(encodeAttributesReply(channel.reply, BODY, fileSystem.attributes(ino)));
}

export function serveOpen(channel: Channel, fileSystem: FileSystem, options: KernelServeOptions): void {
  const ino = channel.u64(IN.NODE);
  const flags = channel.u32(OPEN_IN.FLAGS);
  const access = flags & O_ACCMODE;
  const opened = fileSystem.open(ino, {
    read: access !== WRITE_ONLY,
    write: access !== READ_ONLY,
    truncate: (flags & O_TRUNC) !== 0,
  });
  const answered = channel.answer(
    encodeOpened(channel.reply, BODY, opened.handle, openFlags(opened.isDisk, options.kernelCache)),
  );
  // The opener was interrupted and will send no RELEASE.
  if (!answered) fileSystem.release(ino, opened.handle);
}

function openFlags(isDisk: boolean, kernelCache: boolean): number {
  if (!isDisk) return FOPEN_DIRECT_IO;
  return kernelCache ? FOPEN_KEEP_CACHE : FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES;
}

export function serveRelease(channel: Channel, fileSystem: FileSystem): void {
  fileSystem.release(channel.u64(IN.NODE), channel.u64(HANDLE_AT));
  channel.answer(0);
}

export function serveFsync(channel: Channel, fileSystem: FileSystem): void {
  fileSystem.fsync(channel.u64(IN.NODE), channel.u64(HANDLE_AT));
  channel.answer(0);
}

export function serveOpenDirectory(channel: Channel, fileSystem: FileSystem): void {
  const attributes = fileSystem.attributes(channel.u64(IN.NODE));
  if (attributes.kind !== 'directory') throw new FileError('ENOTDIR');
  channel.answer(encodeOpened(channel.reply, BODY, 0, 0));
}

/**
 * An entry's cookie is its place in the listing, or its own for ever where entries come and go: no state between requests, which any thread
 * may get.
 */
export function serveReadDirectory(channel: Channel, fileSystem: FileSystem): void {
  const ino = channel.u64(IN.NODE);
  const first = channel.u64(IO_IN.OFFSET);
  const end = BODY + Math.min(channel.u32(IO_IN.SIZE), MAX_REQUEST);
  const entries = fileSystem.list(ino);
  // The kernel shows the number of `..` as it is told, and resolves the name itself.
  const dots: DirectoryEntry[] = [
    { name: '.', ino, kind: 'directory' },
    { name: '..', ino: fileSystem.rootIno, kind: 'directory' },
  ];
  let at = BODY;
  for (let index = 0; index < dots.length + entries.length; index++) {
    const entry = index < dots.length ? dots[index] : entries[index - dots.length];
    const cookie = entry.position === undefined ? index + 1 : dots.length + entry.position;
    if (cookie <= first) continue;
    const bytes = encodeDirectoryEntry(channel.reply, at, end, entry, cookie);
    if (bytes === 0) break;
    at += bytes;
  }
  channel.answer(at - BODY);
}

export function serveStatistics(channel: Channel, fileSystem: FileSystem): void {
  channel.answer(encodeStatistics(channel.reply, BODY, fileSystem.statistics()));
}

/** The four requests of fallocate(2) that a disk can carry out; undefined for the others. */
export function fallocateMode(bits: number): FallocateMode | undefined {
  switch (bits) {
    case 0:
    case FALLOC_KEEP_SIZE:
      return 'allocate';
    // The kernel lets it pass only together with KEEP_SIZE.
    case FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE:
      return 'punch-hole';
    case FALLOC_ZERO_RANGE:
    case FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE:
      return 'zero-range';
    default:
      return undefined;
  }
}

export function serveFallocate(channel: Channel, fileSystem: FileSystem): void {
  const bits = channel.u32(FALLOCATE_IN.MODE);
  const mode = fallocateMode(bits);
  if (mode === undefined) throw new FileError('EOPNOTSUPP');
  const offset = channel.u64(FALLOCATE_IN.OFFSET);
  const length = channel.u64(FALLOCATE_IN.LENGTH);
  checkOffset(offset + length);
  const keepSize = (bits & FALLOC_KEEP_SIZE) !== 0;
  fileSystem.fallocate(channel.u64(IN.NODE), channel.u64(HANDLE_AT), mode, keepSize, offset, length);
  channel.answer(0);
}

export function serveSeek(channel: Channel, fileSystem: FileSystem): void {
  const whence = channel.u32(LSEEK_IN.WHENCE);
  if (whence !== SEEK_DATA && whence !== SEEK_HOLE) throw new FileError('EINVAL');
  const offset = channel.u64(LSEEK_IN.OFFSET);
  if (!Number.isSafeInteger(offset)) throw new FileError('ENXIO');
  const what = whence === SEEK_DATA ? 'data' : 'hole';
  const found = fileSystem.seek(channel.u64(IN.NODE), channel.u64(HANDLE_AT), offset, what);
  channel.answer(encodeOffset(channel.reply, BODY, found));
}

/**
 * Copies through the reply's buffer, which is free until the reply. An error after the first piece is not reported: the caller learns
 * how much was copied, and meets the error again when it asks for the rest.
 */
export function serveCopyRange(channel: Channel, fileSystem: FileSystem): void {
  const from = channel.u64(COPY_IN.OFFSET_IN);
  const to = channel.u64(COPY_IN.OFFSET_OUT);
  const length = Math.min(channel.u64(COPY_IN.LENGTH), COPY_BYTES_MAX);
  checkOffset(from + length);
  checkOffset(to + length);
  let copied = 0;
  while (copied < length) {
    const part = Math.min(length - copied, MAX_REQUEST);
    try {
      const done = copyPart(channel, fileSystem, from + copied, to + copied, part);
      copied += done;
      if (done < part) break;
    } catch (error) {
      if (copied === 0) throw error;
      break;
    }
  }
  channel.answer(encodeWritten(channel.reply, BODY, copied));
}

/** @returns bytes copied; fewer than `length` at the end of one of the files */
function copyPart(channel: Channel, fileSystem: FileSystem, from: number, to: number, length: number): number {
  const buffer = channel.reply;
  const read = fileSystem.read(channel.u64(IN.NODE), channel.u64(HANDLE_AT), from, buffer, BODY, length);
  if (read === 0) return 0;
  return fileSystem.write(
    channel.u64(COPY_IN.NODE_OUT),
    channel.u64(COPY_IN.HANDLE_OUT),
    to,
    buffer,
    BODY,
    read,
    false,
  );
}
