/** INIT: what this kernel and we agree on. */
import { MIB } from '../../units';
import { type KernelServeOptions, MAX_REQUEST } from '../session';
import type { Channel } from './channel';
import {
  INIT_FLAG,
  INIT_FLAG2,
  INIT_IN,
  INIT_OUT,
  MAX_PAGES,
  PROTOCOL_MAJOR,
  PROTOCOL_MINOR,
  PROTOCOL_MINOR_MIN,
} from './protocol';

/**
 * With the kernel's default of 12 a slow image's asynchronous requests (readahead, libaio) keep those of every other file waiting.
 * The kernel lowers both for mounts of users to /sys/module/fuse/parameters.
 */
const MAX_BACKGROUND = 65535;
const CONGESTION_THRESHOLD = 49151;

export interface InitRequest {
  major: number;
  minor: number;
  maxReadahead: number;
  flags: number;
  /** 0 from kernels without INIT_EXT. */
  flags2: number;
}

export interface InitReply {
  minor: number;
  maxReadahead: number;
  flags: number;
  flags2: number;
}

/**
 * ATOMIC_O_TRUNC is not wanted (the kernel then drops pages that a shared mapping has changed, though a disk keeps its size), nor
 * AUTO_INVAL_DATA (each write moves the time of modification, and the kernel would drop its own cache for that), nor
 * WRITEBACK_CACHE: it would let the kernel collect writes that nobody but an fsync ever sees.
 *
 * @returns undefined when the kernel speaks a protocol that is too old
 */
export function negotiate(request: InitRequest, options: KernelServeOptions): InitReply | undefined {
  if (request.major < PROTOCOL_MAJOR || (request.major === PROTOCOL_MAJOR && request.minor < PROTOCOL_MINOR_MIN)) {
    return undefined;
  }
  const wanted =
    INIT_FLAG.ASYNC_READ |
    INIT_FLAG.BIG_WRITES |
    INIT_FLAG.ASYNC_DIO |
    INIT_FLAG.PARALLEL_DIROPS |
    INIT_FLAG.MAX_PAGES |
    INIT_FLAG.INIT_EXT;
  const flags = request.flags & ~(options.maskInitFlags ?? 0) & wanted;
  const extended = (flags & INIT_FLAG.INIT_EXT) !== 0;
  return {
    minor: Math.min(request.minor, PROTOCOL_MINOR),
    maxReadahead: Math.max(request.maxReadahead, MIB),
    flags,
    flags2: extended ? request.flags2 & INIT_FLAG2.DIRECT_IO_ALLOW_MMAP : 0,
  };
}

/** @param length of the whole request */
export function parseInit(channel: Channel, length: number): InitRequest {
  const flags = channel.u32(INIT_IN.FLAGS);
  const extended = (flags & INIT_FLAG.INIT_EXT) !== 0 && length >= INIT_IN.FLAGS2 + 4;
  return {
    major: channel.u32(INIT_IN.MAJOR),
    minor: channel.u32(INIT_IN.MINOR),
    maxReadahead: channel.u32(INIT_IN.MAX_READAHEAD),
    flags,
    flags2: extended ? channel.u32(INIT_IN.FLAGS2) : 0,
  };
}

export function encodeInit(target: Buffer, at: number, reply: InitReply): number {
  target.fill(0, at, at + INIT_OUT.BYTES);
  target.writeUInt32LE(PROTOCOL_MAJOR, at + INIT_OUT.MAJOR);
  target.writeUInt32LE(reply.minor, at + INIT_OUT.MINOR);
  target.writeUInt32LE(reply.maxReadahead, at + INIT_OUT.MAX_READAHEAD);
  target.writeUInt32LE(reply.flags, at + INIT_OUT.FLAGS);
  target.writeUInt16LE(MAX_BACKGROUND, at + INIT_OUT.MAX_BACKGROUND);
  target.writeUInt16LE(CONGESTION_THRESHOLD, at + INIT_OUT.CONGESTION_THRESHOLD);
  target.writeUInt32LE(MAX_REQUEST, at + INIT_OUT.MAX_WRITE);
  target.writeUInt32LE(1, at + INIT_OUT.TIME_GRANULARITY);
  target.writeUInt16LE(MAX_PAGES, at + INIT_OUT.MAX_PAGES);
  target.writeUInt32LE(reply.flags2, at + INIT_OUT.FLAGS2);
  return INIT_OUT.BYTES;
}
