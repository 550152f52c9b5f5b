/**
 * One thread's end of /dev/fuse: a buffer for the request that is being served, a buffer for its reply, and the rule that a request
 * gets exactly one reply. Requests can be put aside until others have been read. Nothing is allocated per request.
 */
import * as fs from 'node:fs';
import { constants } from 'node:os';
import { alignedBuffer } from '../../system/aligned-buffer';
import { readDescriptor, readIfReady, writeDescriptor } from '../../system/transfer';
import { printLine, reportBug } from '../errno';
import { MAX_REQUEST } from '../session';
import {
  IN,
  IN_HEADER_BYTES,
  IO_IN,
  OUT,
  OUT_HEADER_BYTES,
  READ_BYTES,
  REQUEST_BYTES,
  REQUEST_BYTES_MIN,
} from './protocol';
import type { Seats } from './seats';
import { openSecond } from './second-descriptor';
import { Spinner } from './spinner';

const { EIO } = constants.errno;

const TWO_32 = 2 ** 32;
const READ_WORDS = READ_BYTES / 4;

/** Answers of `receive` beside a request's length, which is at least 40. */
export const NOTHING = 0;
export const ENDED = -1;

/**
 * Requests of one worker that can be put aside. Two workers then give a disk 32 at a time; with room for 32 each they were
 * slower, because those that are there already wait for those before them.
 */
export const ASIDE_MAX = 16;

export class Channel {
  /** The request as it was read. The data of a WRITE, which follows its fixed part, lies at the start of a page. */
  readonly request: Buffer;
  /** The reply: header, then body from `OUT_HEADER_BYTES` on, which is the start of a page. */
  readonly reply: Buffer;
  private readonly request32: Uint32Array;
  private readonly reply32: Uint32Array;
  private readonly fd: number;
  private readonly seats: Seats;
  private readonly spinner: Spinner;
  private answered = true;
  /** Where the request that is being served was read; its reply goes there. */
  private source: number;
  /** Does not block. Undefined: not opened yet; -1: cannot be had, or closed. */
  private second: number | undefined;
  /** The fixed parts of the requests that were put aside, one behind the other, their lengths, and where each was read. */
  private readonly aside = new Uint32Array(ASIDE_MAX * READ_WORDS);
  private readonly asideLengths = new Int32Array(ASIDE_MAX);
  private readonly asideSources = new Int32Array(ASIDE_MAX);
  private asideCount = 0;
  private resumedCount = 0;

  /** @param idle as in `KernelServeOptions` */
  constructor(
    fd: number,
    seats: Seats,
    private idle?: () => boolean,
  ) {
    this.fd = fd;
    this.source = fd;
    this.seats = seats;
    this.spinner = new Spinner(fd, seats);
    this.request = alignedBuffer(REQUEST_BYTES, IO_IN.DATA);
    this.reply = alignedBuffer(OUT_HEADER_BYTES + MAX_REQUEST, OUT_HEADER_BYTES);
    this.request32 = words(this.request);
    this.reply32 = words(this.reply);
  }

  /**
   * Blocks until the kernel has a request.
   * @returns its length; NOTHING when it must be asked again; ENDED when the mount is gone
   */
  receive(): number {
    let length: number;
    this.seats.startWaiting();
    try {
      if (this.idle !== undefined) this.useIdleTime(this.idle);
      this.spinner.spin();
      try {
        length = readDescriptor(this.fd, this.request);
      } catch (error) {
        return afterFailedRead(error);
      }
    } finally {
      this.seats.endWaiting();
    }
    return this.received(this.fd, length);
  }

  private useIdleTime(idle: () => boolean): void {
    while (!this.isAsked) {
      if (idle()) continue;
      this.idle = undefined;
      return;
    }
  }

  /** A request is there, which `receive` would not have to wait for. */
  get isAsked(): boolean {
    return this.spinner.isAsked;
  }

  /** Whether `receiveMore` may be called: there is a descriptor that does not block. */
  get canReceiveMore(): boolean {
    return this.openedSecond >= 0;
  }

  /** @returns as `receive`, but NOTHING also when there is no request right now */
  receiveMore(): number {
    const source = this.openedSecond;
    const length = readIfReady(source, this.request);
    return length < 0 ? NOTHING : this.received(source, length);
  }

  private get openedSecond(): number {
    this.second ??= openSecond(this.fd) ?? -1;
    return this.second;
  }

  /**
   * Puts the request aside so that another can be received. All but the last are READs: of others the next would overwrite what lies
   * behind the fixed part. There is room for `ASIDE_MAX`, again when all have been resumed.
   * @param length as `receive` answered it
   */
  putAside(length: number): void {
    const place = this.asideCount++;
    const { request32, aside } = this;
    // A loop: a call that copies takes longer than so few words.
    for (let word = 0; word < READ_WORDS; word++) aside[place * READ_WORDS + word] = request32[word];
    this.asideLengths[place] = length;
    this.asideSources[place] = this.source;
    this.answered = true;
  }

  /**
   * Goes on with the request that was put aside first.
   * @returns its length; NOTHING when there is none left
   */
  resume(): number {
    if (this.resumedCount === this.asideCount) return NOTHING;
    const place = this.resumedCount++;
    // All places are free again.
    if (this.resumedCount === this.asideCount) this.resumedCount = this.asideCount = 0;
    const { request32, aside } = this;
    for (let word = 0; word < READ_WORDS; word++) request32[word] = aside[place * READ_WORDS + word];
    this.source = this.asideSources[place];
    this.answered = false;
    return this.asideLengths[place];
  }

  /** Those that were put aside have been answered otherwise. */
  dropAside(): void {
    this.asideCount = 0;
  }

  /** Whether several requests are likely to be there: `receiveMore` is then to be asked before `receive`. */
  expectsSeveral(): boolean {
    return this.spinner.expectsSeveral();
  }

  /** @param count how many were answered together; @param isEmpty there was no request at all */
  tookTogether(count: number, isEmpty: boolean): void {
    this.spinner.tookTogether(count, isEmpty);
  }

  /** Where the request that is being served was read. */
  get sourceDescriptor(): number {
    return this.source;
  }

  /** The shared descriptor stays open. */
  close(): void {
    if (this.second !== undefined && this.second >= 0) fs.closeSync(this.second);
    this.second = -1;
  }

  private received(source: number, length: number): number {
    this.source = source;
    // Not by /dev/fuse, but by whatever else it may be: the other end has closed.
    if (length === 0) return ENDED;
    if (length < IN_HEADER_BYTES) return this.malformed(length);
    const opcode = this.u32(IN.OPCODE);
    const shortest = opcode < REQUEST_BYTES_MIN.length ? REQUEST_BYTES_MIN[opcode] : IN_HEADER_BYTES;
    this.answered = false;
    if (this.u32(IN.LENGTH) === length && length >= shortest) return length;
    // Somebody may wait for it: it gets a reply, though nobody knows what it says.
    this.answerError(EIO);
    return this.malformed(length);
  }

  /** Field of the request; `at` is a multiple of 4. */
  u32(at: number): number {
    return this.request32[at / 4];
  }

  /** Field of the request, exact up to 2^53 - 1; what is more is at least 2^53, so it can be recognised. */
  u64(at: number): number {
    return this.request32[at / 4] + this.request32[at / 4 + 1] * TWO_32;
  }

  /** The name that begins at `at`, without its NUL. */
  text(at: number, requestLength: number): string {
    return this.request.toString('utf8', at, this.endOfText(at, requestLength));
  }

  /** Where the name that begins at `at` ends: its NUL, or the end of the request. */
  endOfText(at: number, requestLength: number): number {
    const end = this.request.indexOf(0, at);
    return end < 0 || end > requestLength ? requestLength : end;
  }

  /**
   * Sends the first `bodyBytes` bytes of the reply's body as success.
   * @returns false when the kernel no longer wants it: the caller was interrupted
   */
  answer(bodyBytes: number): boolean {
    return this.send(OUT_HEADER_BYTES + bodyBytes, 0);
  }

  /** @param errno positive */
  answerError(errno: number): void {
    this.send(OUT_HEADER_BYTES, errno);
  }

  /** For requests that must not be answered. */
  leaveUnanswered(): void {
    this.answered = true;
  }

  /** For whatever happened while the request was served: the first reply counts. */
  answerFailure(errno: number): void {
    if (!this.answered) this.answerError(errno);
  }

  /** Called when a request has been served: somebody waits for a reply, so there must be one. */
  finish(): void {
    if (this.answered) return;
    reportBug(new Error(`no reply to FUSE opcode ${this.u32(IN.OPCODE)}`));
    this.answerError(EIO);
  }

  private send(length: number, errno: number): boolean {
    if (this.answered) {
      reportBug(new Error(`second reply to FUSE opcode ${this.u32(IN.OPCODE)}`));
      return true;
    }
    this.answered = true;
    const reply = this.reply32;
    reply[OUT.LENGTH / 4] = length;
    reply[OUT.ERROR / 4] = -errno;
    reply[OUT.UNIQUE / 4] = this.request32[IN.UNIQUE / 4];
    reply[OUT.UNIQUE / 4 + 1] = this.request32[IN.UNIQUE / 4 + 1];
    try {
      writeDescriptor(this.source, this.reply, length);
      return true;
    } catch (error) {
      return this.afterRefusedReply(error, length);
    }
  }

  /**
   * ENOENT: the caller was interrupted, or the mount is going away; nobody waits. Anything else means that the kernel found the reply
   * itself wrong or could not copy it. It has then ended the request with EIO, or it still waits: a bare EIO serves both.
   */
  private afterRefusedReply(error: unknown, length: number): boolean {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    if ((error as NodeJS.ErrnoException).code === 'ENODEV') return false;
    reportBug(error);
    if (length === OUT_HEADER_BYTES && this.reply32[OUT.ERROR / 4] === TWO_32 - EIO) return false;
    this.reply32[OUT.LENGTH / 4] = OUT_HEADER_BYTES;
    this.reply32[OUT.ERROR / 4] = -EIO;
    try {
      writeDescriptor(this.source, this.reply, OUT_HEADER_BYTES);
    } catch {
      // The first write ended the request.
    }
    return false;
  }

  private malformed(length: number): number {
    printLine(`imagefs: malformed FUSE request of ${length} bytes, opcode ${this.u32(IN.OPCODE)}`);
    return NOTHING;
  }
}

/** The same memory as 32-bit words: V8 reads and writes them in place, without creating numbers. */
function words(memory: Buffer): Uint32Array {
  return new Uint32Array(memory.buffer, memory.byteOffset, Math.floor(memory.length / 4));
}

/** What a failed read(2) of the device means: `ENDED` or `NOTHING`. Throws what it cannot mean. */
export function afterFailedRead(error: unknown): number {
  switch ((error as NodeJS.ErrnoException).code) {
    case 'ENODEV':
    // The mount ended while the kernel was handing out a request of it, or was aborted.
    case 'ECONNABORTED':
      return ENDED;
    // ENOENT: the request was interrupted before it could be read.
    case 'ENOENT':
    case 'EINTR':
    case 'EAGAIN':
      return NOTHING;
    default:
      throw error;
  }
}
