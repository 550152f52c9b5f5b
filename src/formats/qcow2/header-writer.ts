/** The header of an open image, written when a table or the list of snapshots has moved. */
import { BlockError } from '../../errors';
import type { ImageState } from '../../shared/image-state';
import type { Storage } from '../../storage/storage';
import { encodeQcow2Fields } from './header';
import type { Qcow2Header } from './layout';
import type { Qcow2State } from './state';

export class HeaderWriter {
  constructor(
    private readonly header: Qcow2Header,
    private readonly storage: Storage,
    private readonly state: ImageState,
    private readonly own: Qcow2State,
  ) {}

  /**
   * Lets the header on disk say `fields`; what was written before is durable first, the header is on return. Then the
   * memory may follow. A failed sync is final.
   */
  publish(fields: Partial<Qcow2Header>): void {
    const { own, state } = this;
    this.sync('flush-data');
    const header = own.current(this.header, { dirty: false, virtualSize: state.virtualSize });
    try {
      this.writeFields({ ...header, ...fields });
    } catch (error) {
      this.restoreHeader(header);
      throw error;
    }
    this.sync('flush-header');
  }

  private writeFields(header: Qcow2Header): void {
    const bytes = encodeQcow2Fields(header);
    this.storage.write(0, bytes, 0, bytes.length, 'header-update');
  }

  /** Nobody knows how much of a header arrived: the old one goes back, or nothing can be promised any more. */
  private restoreHeader(header: Qcow2Header): void {
    try {
      this.writeFields(header);
    } catch (error) {
      this.state.markFailed();
      throw error;
    }
    this.sync('flush-header');
  }

  private sync(event: 'flush-data' | 'flush-header'): void {
    const { state, storage } = this;
    // One at a time, as the flush's: Linux tells of lost pages to one caller only.
    state.syncMutex.with(() => {
      if (state.failed) {
        const { path } = storage;
        throw new BlockError('IO', `Cannot write the header of "${path}": an earlier flush failed`, { path });
      }
      try {
        storage.sync(event);
      } catch (error) {
        state.markFailed();
        throw error;
      }
    });
  }
}
