/**
 * A `.json` file. Its text is made when it is opened, so that a reader sees one consistent text however many reads it takes, and lies
 * in a memfd whose descriptor is the file handle: descriptors belong to the process, so any worker thread can serve the reads
 * and the release, whichever thread served the open.
 */
import * as fs from 'node:fs';
import { hostError, isSystemError } from '../errors';
import { memfdCreate } from '../system/memfd';
import { divCeil, MIB } from '../units';
import { type FileAttributes, FileError, type OpenedFile, type OpenFlags } from './filesystem';
import type { TextContent } from './texts';
import {
  attributesOf,
  DEFAULT_BLOCK_SIZE,
  type FileFacts,
  SECTOR_BYTES_OF_STAT,
  type VirtualFile,
} from './virtual-file';

/** Texts that may be open at once in one mount (our limit): each takes a descriptor and memory of the process. */
export const OPEN_TEXTS_MAX = 256;

/**
 * Largest text, bytes (our limit). A map line takes about 100 bytes, and an image may be made so that each of its clusters needs one:
 * the text must not eat the host's memory.
 */
export const TEXT_BYTES_MAX = 256 * MIB;

/** Texts go to the memfd in pieces of about this size. */
const CHUNK_BYTES = 64 * 1024;

export class TextFile implements VirtualFile {
  private readonly facts: FileFacts;
  private readonly content: TextContent;
  /** Shared by all threads of the mount. */
  private readonly openTexts: Int32Array;
  private readonly bytesMax: number;

  constructor(facts: FileFacts, content: TextContent, openTexts: Int32Array, bytesMax: number = TEXT_BYTES_MAX) {
    this.facts = facts;
    this.content = content;
    this.openTexts = openTexts;
    this.bytesMax = bytesMax;
  }

  /**
   * st_size is the length of the text where that is cheap to know, so that programs which trust it read all of it. map.json takes a walk
   * through all tables of the image: like a file in /proc it shows 0, and is read to its end all the same.
   */
  attributes(): FileAttributes {
    const size = this.content.cheap ? this.sizeOrZero() : 0;
    const blocks = divCeil(size, SECTOR_BYTES_OF_STAT);
    const attributes = attributesOf(this.facts, 'file', { nlink: 1, size, blocks, blksize: DEFAULT_BLOCK_SIZE });
    if (this.content.live) {
      const now = Date.now();
      attributes.mtimeMs = now;
      attributes.ctimeMs = now;
    }
    return attributes;
  }

  open(flags: OpenFlags): OpenedFile {
    if (flags.write || flags.truncate) throw this.readOnly();
    if (Atomics.add(this.openTexts, 0, 1) >= OPEN_TEXTS_MAX) {
      Atomics.sub(this.openTexts, 0, 1);
      throw new FileError(
        'EMFILE',
        `Cannot open ${this.content.name}: ${OPEN_TEXTS_MAX} such files of this mount are open already`,
      );
    }
    try {
      return { handle: this.makeText(), isDisk: false };
    } catch (error) {
      Atomics.sub(this.openTexts, 0, 1);
      if (error instanceof FileError || !isSystemError(error)) throw error;
      throw hostError(error, `Cannot make ${this.content.name}`);
    }
  }

  release(handle: number): void {
    Atomics.sub(this.openTexts, 0, 1);
    closeQuietly(handle);
  }

  read(handle: number, offset: number, target: Uint8Array, at: number, length: number): number {
    try {
      return fs.readSync(handle, target, at, length, offset);
    } catch (error) {
      throw hostError(error, `Cannot read ${this.content.name}`);
    }
  }

  write(): number {
    throw this.readOnly();
  }

  fsync(): void {}

  setSize(): void {
    throw this.readOnly();
  }

  fallocate(): void {
    throw this.readOnly();
  }

  /** A text has no holes but the one at its end. */
  seek(handle: number, offset: number, what: 'data' | 'hole'): number {
    const { size } = fs.fstatSync(handle);
    if (offset < 0 || offset >= size)
      throw new FileError('ENXIO', `Cannot seek at ${offset}: the file has ${size} bytes`);
    return what === 'data' ? offset : size;
  }

  /** @returns the descriptor of a memfd that holds the text */
  private makeText(): number {
    const fd = memfdCreate(`imagefs ${this.content.name}`);
    try {
      let written = 0;
      let pending = '';
      for (const piece of this.content.chunks()) {
        pending += piece;
        if (pending.length < CHUNK_BYTES) continue;
        written = this.append(fd, pending, written);
        pending = '';
      }
      this.append(fd, pending, written);
      return fd;
    } catch (error) {
      closeQuietly(fd);
      throw error;
    }
  }

  /** @returns the length of the text so far */
  private append(fd: number, text: string, written: number): number {
    const bytes = Buffer.from(text);
    if (written + bytes.length > this.bytesMax) {
      throw new FileError(
        'EFBIG',
        `Cannot make ${this.content.name}: it has more than ${this.bytesMax} bytes; use imagefs map`,
      );
    }
    for (let done = 0; done < bytes.length; )
      done += fs.writeSync(fd, bytes, done, bytes.length - done, written + done);
    return written + bytes.length;
  }

  private sizeOrZero(): number {
    try {
      let size = 0;
      for (const piece of this.content.chunks()) size += Buffer.byteLength(piece);
      return size;
    } catch {
      // `ls -l` must work beside an image that cannot be read; open() says what is wrong.
      return 0;
    }
  }

  private readOnly(): FileError {
    return new FileError('EROFS', `Cannot write to ${this.content.name}: it is read-only`);
  }
}

function closeQuietly(fd: number): void {
  try {
    fs.closeSync(fd);
  } catch {
    // A memfd has nothing left to write, so nothing is lost; the caller has its result or its error already.
  }
}
