/** A storage that hands everything on: the base of those that do something on the way. */
import type { Storage, StorageDescriptor, StorageEvent } from './storage';

export class PassingStorage implements Storage {
  readonly path: string;
  readonly readOnly: boolean;

  constructor(protected readonly below: Storage) {
    this.path = below.path;
    this.readOnly = below.readOnly;
  }

  read(offset: number, target: Uint8Array, at: number, length: number): number {
    return this.below.read(offset, target, at, length);
  }

  prefetch(offset: number, length: number): void {
    this.below.prefetch(offset, length);
  }

  /** Those that do something on the way want to see each read. */
  locate(): boolean {
    return false;
  }

  write(offset: number, source: Uint8Array, at: number, length: number, event: StorageEvent): void {
    this.below.write(offset, source, at, length, event);
  }

  punch(offset: number, length: number, event: StorageEvent): void {
    this.below.punch(offset, length, event);
  }

  allocate(offset: number, length: number, event: StorageEvent): void {
    this.below.allocate(offset, length, event);
  }

  size(): number {
    return this.below.size();
  }

  truncate(size: number, event: StorageEvent): void {
    this.below.truncate(size, event);
  }

  sync(event: StorageEvent): void {
    this.below.sync(event);
  }

  nextData(offset: number): number {
    return this.below.nextData(offset);
  }

  nextHole(offset: number): number {
    return this.below.nextHole(offset);
  }

  allocatedBytes(): number {
    return this.below.allocatedBytes();
  }

  describe(): StorageDescriptor {
    return this.below.describe();
  }

  close(): void {
    this.below.close();
  }
}
