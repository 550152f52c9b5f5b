/**
 * `disk`: a block node as a file. It behaves like a block device of fixed size, or, with `-o growable`, like a file that can grow:
 *
 *   read      short at the end, nothing past it
 *   write     fixed: short when it crosses the end, ENOSPC at or past it. growable: the disk grows first
 *   truncate  never shrinks (so that `dd of=disk` and `cp raw.img disk` work); grows only when growable, else EPERM
 *
 * A disk is a whole number of 512-byte sectors, so one that grows ends at the next sector boundary: the file is then up to
 * 511 zero bytes longer than what was asked for, and says so in st_size.
 *
 * `read` and `write` run for every request: they allocate nothing and look nothing up.
 */
import type { BlockNode } from '../block/node';
import type { HostPlace } from '../storage/storage';
import { alignUp, divCeil, SECTOR_SIZE } from '../units';
import { type FallocateMode, type FileAttributes, FileError, type OpenedFile, type OpenFlags } from './filesystem';
import {
  attributesOf,
  DEFAULT_BLOCK_SIZE,
  type FileFacts,
  SECTOR_BYTES_OF_STAT,
  type VirtualFile,
} from './virtual-file';

/** Programs take st_blksize as the size of their buffers; more than one request can carry (1 MiB) gains nothing. */
const BLKSIZE_MAX = 1024 * 1024;

export interface DiskOptions {
  writable: boolean;
  growable: boolean;
  /** One word, shared by all threads, that counts the handles. */
  opens?: Int32Array;
}

export class DiskFile implements VirtualFile {
  private readonly node: BlockNode;
  private readonly facts: FileFacts;
  private readonly writable: boolean;
  private readonly growable: boolean;
  private readonly opens: Int32Array | undefined;
  private readonly times: Float64Array;
  private readonly clock: number;

  constructor(node: BlockNode, facts: FileFacts, options: DiskOptions) {
    this.node = node;
    this.facts = facts;
    this.writable = options.writable && !node.readOnly;
    this.growable = options.growable;
    this.opens = options.opens;
    this.times = facts.times;
    this.clock = facts.clock;
  }

  attributes(): FileAttributes {
    const { node } = this;
    return attributesOf(this.facts, 'file', {
      nlink: 1,
      size: node.size(),
      // What the image file of this layer takes on the host: the layers below have files of their own.
      blocks: divCeil(node.allocatedBytes(), SECTOR_BYTES_OF_STAT),
      blksize: Math.min(Math.max(node.clusterSize, DEFAULT_BLOCK_SIZE), BLKSIZE_MAX),
    });
  }

  /** O_TRUNC needs no care: the size of a disk survives it. */
  open(flags: OpenFlags): OpenedFile {
    if (flags.write || flags.truncate) this.assertWritable();
    if (this.opens !== undefined) Atomics.add(this.opens, 0, 1);
    return { handle: 0, isDisk: true };
  }

  release(): void {
    if (this.opens === undefined) return;
    Atomics.sub(this.opens, 0, 1);
    Atomics.notify(this.opens, 0);
  }

  read(_handle: number, offset: number, target: Uint8Array, at: number, length: number): number {
    const left = this.node.size() - offset;
    if (left <= 0) return 0;
    const count = Math.min(length, left);
    this.node.read(offset, target, at, count);
    return count;
  }

  prefetch(offset: number, length: number): void {
    this.node.prefetch(offset, length);
  }

  holding(body: () => void): void {
    this.node.holding(body);
  }

  locate(offset: number, length: number, place: HostPlace): boolean {
    return this.node.locate(offset, length, place);
  }

  countReads(operations: number, bytes: number): void {
    this.node.countReads(operations, bytes);
  }

  write(_handle: number, offset: number, source: Uint8Array, at: number, length: number, sync: boolean): number {
    if (!this.writable) this.assertWritable();
    if (length === 0) return 0;
    const left = this.node.size() - offset;
    const count = length <= left ? length : this.roomAtEnd(offset, length, left);
    this.node.write(offset, source, at, count);
    this.times[this.clock] = Date.now();
    if (sync) this.node.flush();
    return count;
  }

  fsync(): void {
    // Nothing was written through a read-only file, and its node may be unable to sync.
    if (this.writable) this.node.flush();
  }

  setSize(size: number): void {
    this.assertWritable();
    if (size <= this.node.size()) return;
    if (!this.growable) {
      throw new FileError(
        'EPERM',
        `Cannot grow "${this.node.path}" from ${this.node.size()} to ${size} bytes: its size is fixed unless mounted with -o growable`,
      );
    }
    this.grow(size);
  }

  fallocate(_handle: number, mode: FallocateMode, keepSize: boolean, offset: number, length: number): void {
    this.assertWritable();
    if (offset < 0 || length <= 0)
      throw new FileError('EINVAL', `Cannot allocate ${length} bytes at ${offset}: no such range`);
    // A hole never reaches past the end; fallocate(2) demands KEEP_SIZE with it anyway.
    const mayGrow = mode !== 'punch-hole' && !keepSize;
    if (mayGrow && offset + length > this.node.size()) {
      if (!this.growable) throw this.pastTheEnd(offset, length);
      this.grow(offset + length);
    }
    const count = Math.min(length, this.node.size() - offset);
    if (count <= 0) return;
    if (mode === 'allocate') this.node.allocate(offset, count);
    else this.node.writeZeroes(offset, count);
    this.times[this.clock] = Date.now();
  }

  seek(_handle: number, offset: number, what: 'data' | 'hole'): number {
    const size = this.node.size();
    if (offset < 0 || offset >= size)
      throw new FileError('ENXIO', `Cannot seek at ${offset}: the disk has ${size} bytes`);
    let position = offset;
    while (position < size) {
      const status = this.node.status(position, size - position);
      const isHole = status.zero && !status.data;
      if (isHole === (what === 'hole')) return position;
      position += status.length;
    }
    // There is a hole at the end of every file; there is no data.
    if (what === 'hole') return size;
    throw new FileError('ENXIO', `There is no data at or after ${offset}`);
  }

  /** How many bytes of a write that ends past the disk can be written, after growing it where that is allowed. */
  private roomAtEnd(offset: number, length: number, left: number): number {
    if (this.growable) {
      this.grow(offset + length);
      return length;
    }
    if (left <= 0) throw this.pastTheEnd(offset, length);
    return left;
  }

  private grow(end: number): void {
    const size = alignUp(end, SECTOR_SIZE);
    if (!Number.isSafeInteger(size))
      throw new FileError('EFBIG', `Cannot grow "${this.node.path}" to ${end} bytes: too large`);
    try {
      this.node.resize(size);
    } catch (error) {
      // Another thread has grown the disk further since its size was read, and a disk does not shrink: there is room.
      if (this.node.size() < end) throw error;
      return;
    }
    this.times[this.clock] = Date.now();
  }

  private assertWritable(): void {
    if (!this.writable) throw new FileError('EROFS', `Cannot write to "${this.node.path}": it is read-only here`);
  }

  private pastTheEnd(offset: number, length: number): FileError {
    const found = `${length} bytes at ${offset} do not fit into ${this.node.size()}`;
    return new FileError(
      'ENOSPC',
      `Cannot write past the end of "${this.node.path}": ${found}; -o growable lets disks grow`,
    );
  }
}
