/** A storage in shared memory: for tests, and the base of storages that fail or lose power on purpose. */
import { BlockError } from '../errors';
import type { Storage, StorageDescriptor, StorageEvent } from './storage';

const LENGTH_BYTES = 8;
const PAGE = 4096;
const ZEROES = new Uint8Array(PAGE);

export class MemoryStorage implements Storage {
  readonly path: string;
  readonly readOnly: boolean;
  private readonly buffer: SharedArrayBuffer;
  private readonly length: Float64Array;
  private readonly bytes: Uint8Array;

  /** @param capacity bytes; a write past it fails as a full disk does */
  static create(capacity: number, path = 'memory'): MemoryStorage {
    return new MemoryStorage({
      kind: 'memory',
      buffer: new SharedArrayBuffer(LENGTH_BYTES + capacity),
      path,
      readOnly: false,
    });
  }

  constructor(descriptor: Extract<StorageDescriptor, { kind: 'memory' }>) {
    this.path = descriptor.path;
    this.readOnly = descriptor.readOnly;
    this.buffer = descriptor.buffer;
    this.length = new Float64Array(this.buffer, 0, 1);
    this.bytes = new Uint8Array(this.buffer, LENGTH_BYTES);
  }

  read(offset: number, target: Uint8Array, at: number, length: number): number {
    const count = Math.max(0, Math.min(length, this.size() - offset));
    if (count > 0) target.set(this.bytes.subarray(offset, offset + count), at);
    target.fill(0, at + count, at + length);
    return count;
  }

  prefetch(): void {}

  locate(): boolean {
    return false;
  }

  write(offset: number, source: Uint8Array, at: number, length: number, _event: StorageEvent): void {
    if (this.readOnly)
      throw new BlockError('READ_ONLY', `Cannot write to "${this.path}": it is open read-only`, { path: this.path });
    this.growTo(offset + length);
    this.bytes.set(source.subarray(at, at + length), offset);
  }

  punch(offset: number, length: number, _event: StorageEvent): void {
    const end = Math.min(offset + length, this.size());
    if (end > offset) this.bytes.fill(0, offset, end);
  }

  allocate(offset: number, length: number, _event: StorageEvent): void {
    this.growTo(offset + length);
  }

  size(): number {
    return this.length[0];
  }

  truncate(size: number, _event: StorageEvent): void {
    if (size < this.size()) this.bytes.fill(0, size, this.size());
    else this.growTo(size);
    this.length[0] = size;
  }

  sync(_event: StorageEvent): void {}

  nextData(offset: number): number {
    const size = this.size();
    for (let at = offset; at < size; at++) if (this.bytes[at] !== 0) return Math.max(offset, at - (at % PAGE));
    return size;
  }

  nextHole(offset: number): number {
    const size = this.size();
    for (let page = offset - (offset % PAGE); page < size; page += PAGE) {
      if (this.isZero(page)) return Math.max(offset, page);
    }
    return size;
  }

  allocatedBytes(): number {
    let pages = 0;
    for (let page = 0; page < this.size(); page += PAGE) {
      if (!this.isZero(page)) pages++;
    }
    return pages * PAGE;
  }

  describe(): StorageDescriptor {
    return { kind: 'memory', buffer: this.buffer, path: this.path, readOnly: this.readOnly };
  }

  close(): void {}

  /** Compared as a whole: checks ask this of every page, and tests make thousands of checks. */
  private isZero(page: number): boolean {
    const length = Math.min(PAGE, this.size() - page);
    return Buffer.compare(this.bytes.subarray(page, page + length), ZEROES.subarray(0, length)) === 0;
  }

  private growTo(end: number): void {
    if (end > this.bytes.length) {
      throw new BlockError('NO_SPACE', `Cannot grow "${this.path}" to ${end} bytes: it holds ${this.bytes.length}`, {
        path: this.path,
        cause: Object.assign(new Error('memory storage is full'), { code: 'ENOSPC' }),
      });
    }
    if (end > this.length[0]) this.length[0] = end;
  }
}
