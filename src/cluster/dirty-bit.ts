/**
 * The bit in the header that says "not cleanly closed" (QED's need-check). It is on disk before the first table of a
 * stand-alone image can change, and goes off a while after the last change, when everything is flushed.
 */
import type { FormatDriver } from '../formats/driver';
import { NEED_CHECK_CLEAR, NEED_CHECK_SET, NEED_CHECK_UNKNOWN } from '../shared/image-state';
import { sync } from './flush';
import type { Mapper } from './mapper';

export class DirtyBit {
  constructor(
    private readonly driver: FormatDriver,
    private readonly mapper: Mapper,
  ) {}

  /** Nothing is missing: the bit is on disk, or this image has none. */
  get isSafe(): boolean {
    return !this.driver.usesDirtyBit || this.driver.state.needCheck === NEED_CHECK_SET;
  }

  /** Sets it durably unless it is set; it stays on until `state.endChange()`. No lock is held, `state.beginChange()` was called. */
  set(): void {
    if (this.isSafe) return;
    const { state, storage } = this.driver;
    state.metaMutex.with(() => {
      if (this.isSafe) return;
      state.needCheck = NEED_CHECK_UNKNOWN;
      this.driver.writeHeader({ dirty: true, virtualSize: state.virtualSize });
      sync(this.driver, storage, 'flush-header');
      state.lastAllocation = Date.now();
      state.needCheck = NEED_CHECK_SET;
    });
  }

  /**
   * Turns it off if nothing depends on it: every table is in the file (then its data is, too), none is about to change.
   * Guest data that is not synced yet does not matter: no table names it wrongly.
   */
  clear(): void {
    const { state, storage } = this.driver;
    state.metaMutex.with(() => {
      const clean = this.mapper.locked(() => {
        const before = state.needCheck;
        if (before === NEED_CHECK_CLEAR || state.failed || state.dirtySlots > 0) return false;
        // Off in memory first, then a look at the writers: one that comes later waits for the mutex and sets it again.
        state.needCheck = NEED_CHECK_UNKNOWN;
        if (state.changing === 0) return true;
        state.needCheck = before;
        return false;
      });
      if (!clean) return;
      this.driver.writeHeader({ dirty: false, virtualSize: state.virtualSize });
      sync(this.driver, storage, 'flush-header');
      state.needCheck = NEED_CHECK_CLEAR;
    });
  }
}
