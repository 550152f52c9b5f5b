/**
 * A storage that stops now and then before an operation, as a busy disk or scheduler does: what the engine decided before
 * the operation grows old meanwhile, while other threads go on.
 */

import { PassingStorage } from '../../src/storage/passing';
import type { Storage, StorageEvent } from '../../src/storage/storage';
import type { Random } from './random';

/** Never notified: waiting on it is a pause. */
const NOBODY = new Int32Array(new SharedArrayBuffer(4));

export class DelayedStorage extends PassingStorage {
  /** @param share of the operations that wait; @param milliseconds for how long at the most */
  constructor(
    below: Storage,
    private readonly random: Random,
    private readonly share: number,
    private readonly milliseconds: number,
  ) {
    super(below);
  }

  override read(offset: number, target: Uint8Array, at: number, length: number): number {
    this.wait();
    return super.read(offset, target, at, length);
  }

  override write(offset: number, source: Uint8Array, at: number, length: number, event: StorageEvent): void {
    this.wait();
    super.write(offset, source, at, length, event);
  }

  override punch(offset: number, length: number, event: StorageEvent): void {
    this.wait();
    super.punch(offset, length, event);
  }

  private wait(): void {
    if (this.random.chance(this.share)) Atomics.wait(NOBODY, 0, 0, this.random.next() * this.milliseconds);
  }
}
