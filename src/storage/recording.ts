/**
 * A storage that keeps a log of everything that changes the file, in order, in front of another storage. From the log
 * follow all the states in which a power cut may leave the file. One thread's operations only: each thread attaches
 * objects of its own, and nothing orders their logs.
 */
import type { Storage, StorageDescriptor, StorageEvent } from './storage';

/** One change. `sync`: everything before it is on stable storage. */
export type RecordedOperation =
  | { kind: 'write'; event: StorageEvent; offset: number; bytes: Uint8Array }
  | { kind: 'punch'; event: StorageEvent; offset: number; length: number }
  | { kind: 'allocate'; event: StorageEvent; offset: number; length: number }
  | { kind: 'truncate'; event: StorageEvent; size: number }
  | { kind: 'sync'; event: StorageEvent };

export class RecordingStorage implements Storage {
  readonly path: string;
  readonly readOnly: boolean;

  /** @param log gets an entry for each operation that has succeeded */
  constructor(
    private readonly below: Storage,
    readonly log: RecordedOperation[] = [],
  ) {
    this.path = below.path;
    this.readOnly = below.readOnly;
  }

  read(offset: number, target: Uint8Array, at: number, length: number): number {
    return this.below.read(offset, target, at, length);
  }

  write(offset: number, source: Uint8Array, at: number, length: number, event: StorageEvent): void {
    this.below.write(offset, source, at, length, event);
    // Not slice(): that of a Buffer is a view of what the caller goes on to change.
    this.log.push({ kind: 'write', event, offset, bytes: Uint8Array.from(source.subarray(at, at + length)) });
  }

  punch(offset: number, length: number, event: StorageEvent): void {
    this.below.punch(offset, length, event);
    this.log.push({ kind: 'punch', event, offset, length });
  }

  allocate(offset: number, length: number, event: StorageEvent): void {
    this.below.allocate(offset, length, event);
    this.log.push({ kind: 'allocate', event, offset, length });
  }

  size(): number {
    return this.below.size();
  }

  truncate(size: number, event: StorageEvent): void {
    this.below.truncate(size, event);
    this.log.push({ kind: 'truncate', event, size });
  }

  sync(event: StorageEvent): void {
    this.below.sync(event);
    this.log.push({ kind: 'sync', event });
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
