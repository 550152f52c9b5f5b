/** A raw image: guest offset and host offset are the same. */
import type { FormatDriver } from '../formats/driver';
import type { ImageState } from '../shared/image-state';
import type { HostPlace } from '../storage/storage';
import { alignDown, SECTOR_SIZE } from '../units';
import { cannotCompress } from './compressed';
import { refuseAfterFailure, sync } from './flush';
import { FLUSH_DELAY_MS, type Layer, type LayerStatus } from './layer';

export class FlatLayer implements Layer {
  readonly state: ImageState;
  readonly readOnly: boolean;

  constructor(private readonly driver: FormatDriver) {
    this.state = driver.state;
    this.readOnly = driver.storage.readOnly;
  }

  size(): number {
    return this.state.virtualSize;
  }

  read(guest: number, target: Uint8Array, at: number, length: number): void {
    this.driver.storage.read(guest, target, at, length);
  }

  prefetch(guest: number, length: number): void {
    this.driver.storage.prefetch(guest, length);
  }

  /** What lies in the file stays where it is. */
  holding(body: () => void): void {
    body();
  }

  locate(guest: number, _length: number, place: HostPlace): boolean {
    return this.driver.storage.locate(guest, place);
  }

  write(guest: number, source: Uint8Array, at: number, length: number): void {
    try {
      this.driver.storage.write(guest, source, at, length, 'data-write');
    } finally {
      this.state.markDataDirty();
    }
  }

  writeCompressed(): void {
    throw cannotCompress(this.driver);
  }

  writeZeroes(guest: number, length: number): void {
    this.driver.storage.punch(guest, length, 'data-write');
    this.state.markDataDirty();
  }

  allocate(guest: number, length: number): void {
    this.driver.storage.allocate(guest, length, 'data-write');
    this.state.markDataDirty();
  }

  flush(): void {
    const { state, driver } = this;
    state.flushGate.pass(() => {
      refuseAfterFailure(driver);
      state.dirtySince = 0;
      if (state.takeDataDirty()) sync(driver, driver.storage, 'flush-data');
    });
  }

  resize(size: number): void {
    const { state, driver } = this;
    state.growMutex.with(() => {
      if (size <= state.virtualSize) return;
      driver.storage.truncate(size, 'cluster-grow');
      state.virtualSize = size;
      state.markDataDirty();
    });
  }

  status(guest: number, maxLength: number): LayerStatus {
    const { storage } = this.driver;
    const fileEnd = storage.size();
    if (guest >= fileEnd) return { kind: 'zero', length: maxLength };
    const data = alignDown(storage.nextData(guest), SECTOR_SIZE);
    if (data > guest) return { kind: 'zero', length: Math.min(maxLength, data - guest) };
    const hole = storage.nextHole(guest);
    const length = hole > guest ? Math.min(maxLength, hole - guest) : maxLength;
    return { kind: 'data', length, offset: guest, writable: true };
  }

  maintain(nowMs: number): void {
    if (this.state.dirtySince !== 0 && nowMs - this.state.dirtySince >= FLUSH_DELAY_MS) this.flush();
  }

  finish(): void {
    this.flush();
  }
}
