import { BlockError } from '../../errors';
import { NEED_CHECK_CLEAR, NEED_CHECK_SET } from '../../shared/image-state';
import type { Storage } from '../../storage/storage';
import { alignUp } from '../../units';
import type { FormatModule, ImageHeader } from '../format';
import { markBitmapsInUse } from './bitmap-codec';
import { QCOW2_CAPABILITIES, Qcow2Driver } from './driver';
import { autoclearBits, encodeQcow2Fields, readQcow2Header } from './header';
import { isQcow2, type Qcow2Header } from './layout';
import { Qcow2State } from './state';

export const qcow2Format: FormatModule = {
  name: 'qcow2',
  capabilities: QCOW2_CAPABILITIES,
  probe: isQcow2,
  readHeader: readQcow2Header,

  initState(header, storage, state) {
    const qcow2 = asQcow2(header);
    state.virtualSize = header.virtualSize;
    // The last cluster of a file may be cut; nothing else is ever placed into its rest.
    state.hostSize = storage.size();
    state.fileEnd = alignUp(state.hostSize, header.clusterSize);
    state.needCheck = header.dirty ? NEED_CHECK_SET : NEED_CHECK_CLEAR;
    new Qcow2State(state).init(qcow2);
  },

  prepareWrite(header, storage) {
    const qcow2 = asQcow2(header);
    if (qcow2.corrupt) {
      throw new BlockError(
        'CORRUPT_IMAGE',
        `Cannot open qcow2 image "${storage.path}" for writing: it is marked corrupt; run "imagefs check -r all"`,
        { path: storage.path },
      );
    }
    if (qcow2.dirty) repair(qcow2, storage);
    clearAutoclear(qcow2, storage);
  },

  attach: (header, storage, state, cache, imageId, data) =>
    new Qcow2Driver(asQcow2(header), storage, data ?? storage, state, cache, imageId),
};

/** The last writer did not close the image: its counts may be wrong, and places that are in use look free. */
function repair(_header: Qcow2Header, storage: Storage): void {
  throw new BlockError(
    'CORRUPT_IMAGE',
    `Cannot open qcow2 image "${storage.path}" for writing: it was not closed cleanly; run "imagefs check -r all"`,
    { path: storage.path },
  );
}

/**
 * Whoever does not know an autoclear bit clears it before the first write, so that its owner sees that somebody wrote. The
 * bitmaps' own bit stays, with the bitmaps that miss our changes marked one by one.
 */
function clearAutoclear(header: Qcow2Header, storage: Storage): void {
  if (header.bitmaps !== undefined && !markBitmapsInUse(storage, header.bitmaps)) delete header.bitmaps;
  const autoclear = autoclearBits(header);
  if (autoclear !== header.autoclear) {
    header.autoclear = autoclear;
    const bytes = encodeQcow2Fields(header);
    storage.write(0, bytes, 0, bytes.length, 'header-update');
  } else if (header.bitmaps === undefined) return;
  storage.sync('flush-header');
}

export function asQcow2(header: ImageHeader): Qcow2Header {
  return header as Qcow2Header;
}
