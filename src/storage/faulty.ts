/**
 * A storage that fails on purpose, in front of another one. Rules name the event, how often it may pass before it fails,
 * and whether it fails once or always, before anything has happened or half-way.
 */
import { BlockError } from '../errors';
import { PassingStorage } from './passing';
import type { StorageEvent } from './storage';

export interface FaultRule {
  event: StorageEvent | 'read';
  /** Errno name the host would give: `EIO`, `ENOSPC`. */
  errno: string;
  /** Matching operations that pass first. */
  after: number;
  once: boolean;
  /** A write that fails has written its first half, as a host does that runs out of space in the middle of it. */
  half?: boolean;
}

export class FaultyStorage extends PassingStorage {
  /** Operations seen, by event. */
  readonly seen = new Map<string, number>();
  /** Operations that were made to fail. */
  fired = 0;
  private rules: FaultRule[] = [];

  /** From now on `rule` applies, counted from here. */
  arm(rule: FaultRule): void {
    this.rules.push({ ...rule });
  }

  /** The cause is gone. */
  heal(): void {
    this.rules = [];
  }

  override read(offset: number, target: Uint8Array, at: number, length: number): number {
    this.meet('read');
    return super.read(offset, target, at, length);
  }

  override write(offset: number, source: Uint8Array, at: number, length: number, event: StorageEvent): void {
    this.meet(event, () => super.write(offset, source, at, Math.floor(length / 2), event));
    super.write(offset, source, at, length, event);
  }

  override punch(offset: number, length: number, event: StorageEvent): void {
    this.meet(event, () => super.punch(offset, Math.floor(length / 2), event));
    super.punch(offset, length, event);
  }

  override allocate(offset: number, length: number, event: StorageEvent): void {
    this.meet(event);
    super.allocate(offset, length, event);
  }

  override truncate(size: number, event: StorageEvent): void {
    this.meet(event);
    super.truncate(size, event);
  }

  override sync(event: StorageEvent): void {
    this.meet(event);
    super.sync(event);
  }

  private meet(event: StorageEvent | 'read', half: () => void = () => {}): void {
    this.seen.set(event, (this.seen.get(event) ?? 0) + 1);
    for (const rule of this.rules) {
      if (rule.event !== event) continue;
      if (rule.after > 0) {
        rule.after--;
        continue;
      }
      if (rule.once) this.rules.splice(this.rules.indexOf(rule), 1);
      this.fired++;
      if (rule.half === true) half();
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
