/**
 * A storage that fails on purpose, in front of another one. Rules name the event, how often it may pass before it fails,
 * and whether it fails once or always.
 */
import { BlockError } from '../errors';
import type { Storage, StorageDescriptor, StorageEvent } from './storage';

export interface FaultRule {
  event: StorageEvent | 'read';
  /** Errno name the host would give: `EIO`, `ENOSPC`. */
  errno: string;
  /** Matching operations that pass first. */
  after: number;
  once: boolean;
}

export class FaultyStorage implements Storage {
  readonly path: string;
  readonly readOnly: boolean;
  /** Operations seen, by event. */
  readonly seen = new Map<string, number>();
  /** Operations that were made to fail. */
  fired = 0;
  private rules: FaultRule[] = [];

  constructor(private readonly below: Storage) {
    this.path = below.path;
    this.readOnly = below.readOnly;
  }

  /** From now on `rule` applies, counted from here. */
  arm(rule: FaultRule): void {
    this.rules.push({ ...rule });
  }

  /** The cause is gone. */
  heal(): void {
    this.rules = [];
  }

  read(offset: number, target: Uint8Array, at: number, length: number): number {
    this.meet('read');
    return this.below.read(offset, target, at, length);
  }

  write(offset: number, source: Uint8Array, at: number, length: number, event: StorageEvent): void {
    this.meet(event);
    this.below.write(offset, source, at, length, event);
  }

  punch(offset: number, length: number, event: StorageEvent): void {
    this.meet(event);
    this.below.punch(offset, length, event);
  }

  allocate(offset: number, length: number, event: StorageEvent): void {
    this.meet(event);
    this.below.allocate(offset, length, event);
  }

  size(): number {
    return this.below.size();
  }

  truncate(size: number, event: StorageEvent): void {
    this.meet(event);
    this.below.truncate(size, event);
  }

  sync(event: StorageEvent): void {
    this.meet(event);
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

  private meet(event: StorageEvent | 'read'): void {
    this.seen.set(event, (this.seen.get(event) ?? 0) + 1);
    for (const rule of this.rules) {
      if (rule.event !== event) continue;
      if (rule.after > 0) {
        rule.after--;
        continue;
      }
      if (rule.once) this.rules.splice(this.rules.indexOf(rule), 1);
      this.fired++;
      const cause = Object.assign(new Error(`injected ${rule.errno}`), { code: rule.errno, syscall: event });
      throw new BlockError(
        rule.errno === 'ENOSPC' ? 'NO_SPACE' : 'IO',
        `Cannot ${event} "${this.path}": injected ${rule.errno}`,
        {
          path: this.path,
          cause,
        },
      );
    }
  }
}
