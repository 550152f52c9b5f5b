/**
 * A storage that calls back before or after an operation: there, a test runs what another thread would do at this very
 * moment. The engine holds no lock of the image's mapping during host I/O, so a second thread's nodes can be used from the
 * callback, as long as they need nothing that the first one holds (its remapped clusters, the flush, the header).
 */

import { PassingStorage } from '../../src/storage/passing';
import type { StorageEvent } from '../../src/storage/storage';

export interface Hook {
  event: StorageEvent | 'read';
  when: 'before' | 'after';
  run: () => void;
}

export class HookedStorage extends PassingStorage {
  private hooks: Hook[] = [];

  /** Runs once, at the next operation of this kind. */
  at(event: Hook['event'], when: Hook['when'], run: () => void): void {
    this.hooks.push({ event, when, run });
  }

  /** Hooks that have not run yet. */
  get waiting(): number {
    return this.hooks.length;
  }

  override read(offset: number, target: Uint8Array, at: number, length: number): number {
    return this.around('read', () => super.read(offset, target, at, length));
  }

  override write(offset: number, source: Uint8Array, at: number, length: number, event: StorageEvent): void {
    // The engine's buffer may be the one that the callback's requests use too.
    const copy = source.slice(at, at + length);
    this.around(event, () => super.write(offset, copy, 0, length, event));
  }

  override punch(offset: number, length: number, event: StorageEvent): void {
    this.around(event, () => super.punch(offset, length, event));
  }

  override allocate(offset: number, length: number, event: StorageEvent): void {
    this.around(event, () => super.allocate(offset, length, event));
  }

  override truncate(size: number, event: StorageEvent): void {
    this.around(event, () => super.truncate(size, event));
  }

  override sync(event: StorageEvent): void {
    this.around(event, () => super.sync(event));
  }

  private around<T>(event: Hook['event'], body: () => T): T {
    this.run(event, 'before');
    const result = body();
    this.run(event, 'after');
    return result;
  }

  private run(event: Hook['event'], when: Hook['when']): void {
    const index = this.hooks.findIndex((hook) => hook.event === event && hook.when === when);
    if (index < 0) return;
    const [hook] = this.hooks.splice(index, 1);
    hook.run();
  }
}
