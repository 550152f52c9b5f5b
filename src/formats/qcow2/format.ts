import { BlockError } from '../../errors';
import { NEED_CHECK_CLEAR, NEED_CHECK_SET } from '../../shared/image-state';
import type { Storage } from '../../storage/storage';
import { alignUp } from '../../units';
import type { FormatModule, ImageHeader } from '../format';
import { markBitmapsInUse } from './bitmap-codec';
import { checkQcow2 } from './check';
import { createQcow2 } from './create';
import { QCOW2_CREATE_OPTIONS } from './create-header';
import { describeQcow2 } from './describe';
import { Qcow2Driver } from './driver';
import { autoclearBits, encodeQcow2Fields, readQcow2Header } from './header';
import { isQcow2, QCOW2_CAPABILITIES, type Qcow2Header } from './layout';
import { readSnapshotTable } from './snapshot-table';
import { Qcow2State } from './state';

export const qcow2Format: FormatModule = {
  name: 'qcow2',
  capabilities: QCOW2_CAPABILITIES,
  probe: isQcow2,
  readHeader: readQcow2Header,

  initState(header, storage, state) {
    const qcow2 = asQcow2(header);
    state.virtualSize = header.virtualSize;
    // The last cluster of a file may be cut; its rest belongs to it, so growing must not take what is written there for a tail.
    state.fileEnd = alignUp(storage.size(), header.clusterSize);
    state.hostSize = state.fileEnd;
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
    // Whoever writes beside snapshots that nobody can read may destroy them, and learns of it when it is too late.
    readSnapshotTable(storage, qcow2);
    clearAutoclear(qcow2, storage);
  },

  attach: (header, storage, state, cache, imageId, data) =>
    new Qcow2Driver(asQcow2(header), storage, data ?? storage, state, cache, imageId),
  readDamagedHeader: (storage) => readQcow2Header(storage, true),
  create: createQcow2,
  createOptions: QCOW2_CREATE_OPTIONS,
  check: (header, storage, repair) => checkQcow2(asQcow2(header), storage, repair),

  describe(header, storage, state) {
    const qcow2 = asQcow2(header);
    if (state === undefined) return describeQcow2(qcow2, storage);
    const { dirty } = header;
    return describeQcow2(new Qcow2State(state).current(qcow2, { dirty, virtualSize: state.virtualSize }), storage);
  },
};

/** The last writer did not close the image: its counts may be wrong, and places that are in use look free. */
function repair(header: Qcow2Header, storage: Storage): void {
  const result = checkQcow2(header, storage, 'all');
  if (result.checkErrors > 0 || result.corruptions > 0) {
    throw new BlockError(
      'CORRUPT_IMAGE',
      `Cannot open qcow2 image "${storage.path}" for writing: it was not closed cleanly and ${result.corruptions + result.checkErrors} errors could not be repaired; run "imagefs check -r all"`,
      { path: storage.path },
    );
  }
  // The repair may have moved the tables, and has cleared the dirty bit.
  Object.assign(header, readQcow2Header(storage));
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
