/** Images whose tables are wrong: whoever finds that out on the way of a change marks the image, and nothing changes it any more. */
import { BlockError } from '../errors';
import { type FormatDriver, TableError } from '../formats/driver';
import { logOf } from '../log';

const log = logOf('cluster');

export function refuseCorrupt({ state, storage }: FormatDriver): void {
  if (!state.corrupt) return;
  const { path } = storage;
  const message = `Cannot write to "${path}": the image is marked corrupt; unmount it and run "imagefs check -r all"`;
  throw new BlockError('CORRUPT_IMAGE', message, { path });
}

/** Runs a change of the disk or of the snapshots. No lock and no request of this thread is there; `change` has its own. */
export function markingCorrupt<T>(driver: FormatDriver, change: () => T): T {
  try {
    return change();
  } catch (error) {
    const { path } = driver.storage;
    if (!(error instanceof TableError) || error.path !== path || driver.markCorrupt === undefined) throw error;
    try {
      driver.markCorrupt();
    } catch (failure) {
      log('%s: the corrupt bit could not be written: %s', path, failure);
    }
    const message = `${error.message} (the image is marked corrupt, nothing is written to it any more)`;
    throw new BlockError('CORRUPT_IMAGE', message, { path, offset: error.offset, cause: error });
  }
}
