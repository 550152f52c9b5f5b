/**
 * A storage that keeps a log of everything that changes the file, in order, in front of another storage. From the log
 * follow all the states in which a power cut may leave the file. One thread's operations only: each thread attaches
 * objects of its own, and nothing orders their logs.
 */
import { PassingStorage } from './passing';
import type { Storage, StorageEvent } from './storage';

type Change =
  | { kind: 'write'; event: StorageEvent; offset: number; bytes: Uint8Array }
  | { kind: 'punch'; event: StorageEvent; offset: number; length: number }
  | { kind: 'allocate'; event: StorageEvent; offset: number; length: number }
  | { kind: 'truncate'; event: StorageEvent; size: number }
  | { kind: 'sync'; event: StorageEvent };

/** One change. `sync`: everything before it is on stable storage. `file`: which of several that share the log; absent: 0. */
export type RecordedOperation = Change & { file?: number };

export class RecordingStorage extends PassingStorage {
  /**
   * @param log gets an entry for each operation that has succeeded
   * @param file which file this is, when several share the log
   */
  constructor(
    below: Storage,
    readonly log: RecordedOperation[] = [],
    private readonly file = 0,
  ) {
    super(below);
  }

  override write(offset: number, source: Uint8Array, at: number, length: number, event: StorageEvent): void {
    super.write(offset, source, at, length, event);
    // Not slice(): that of a Buffer is a view of what the caller goes on to change.
    this.note({ kind: 'write', event, offset, bytes: Uint8Array.from(source.subarray(at, at + length)) });
  }

  override punch(offset: number, length: number, event: StorageEvent): void {
    super.punch(offset, length, event);
    this.note({ kind: 'punch', event, offset, length });
  }

  override allocate(offset: number, length: number, event: StorageEvent): void {
    super.allocate(offset, length, event);
    this.note({ kind: 'allocate', event, offset, length });
  }

  override truncate(size: number, event: StorageEvent): void {
    super.truncate(size, event);
    this.note({ kind: 'truncate', event, size });
  }

  override sync(event: StorageEvent): void {
    super.sync(event);
    this.note({ kind: 'sync', event });
  }

  private note(change: Change): void {
    this.log.push(this.file === 0 ? change : { ...change, file: this.file });
  }
}
