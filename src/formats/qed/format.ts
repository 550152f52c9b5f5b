import { BlockError } from '../../errors';
import { NEED_CHECK_CLEAR, NEED_CHECK_SET } from '../../shared/image-state';
import { alignDown } from '../../units';
import { BACKING_OPTIONS, type CreateOptionSpec, preallocationOption, SIZE_OPTION } from '../create-options';
import type { FormatModule, ImageHeader } from '../format';
import { initL1 } from '../two-level';
import { checkQed } from './check';
import { createQed } from './create';
import { QED_CAPABILITIES, QedDriver } from './driver';
import { encodeQedHeader, isQed, QED_DEFAULT_CLUSTER_SIZE, type QedHeader, readQedHeader } from './header';

const CREATE_OPTIONS: readonly CreateOptionSpec[] = [
  SIZE_OPTION,
  ...BACKING_OPTIONS,
  { name: 'cluster_size', type: 'size', help: 'Cluster size (in bytes)', shown: String(QED_DEFAULT_CLUSTER_SIZE) },
  { name: 'table_size', type: 'size', help: 'L1/L2 table size (in clusters)' },
  preallocationOption('off', 'falloc', 'full'),
];

export const qedFormat: FormatModule = {
  name: 'qed',
  capabilities: QED_CAPABILITIES,
  probe: isQed,
  readHeader: readQedHeader,

  initState(header, storage, state) {
    const { l1TableOffset, tableSize, clusterSize } = asQed(header);
    initL1(state, l1TableOffset, tableSize * clusterSize);
    state.virtualSize = header.virtualSize;
    // What lies behind the last whole cluster is nobody's: a cluster counts only if all of it is in the file.
    state.fileEnd = alignDown(storage.size(), header.clusterSize);
    state.hostSize = state.fileEnd;
    state.needCheck = header.dirty ? NEED_CHECK_SET : NEED_CHECK_CLEAR;
  },

  prepareWrite(header, storage) {
    const qed = asQed(header);
    if (qed.autoclearFeatures !== 0n) {
      // Whoever does not know such a bit clears it before the first write, so that its owner sees that somebody wrote.
      qed.autoclearFeatures = 0n;
      storage.write(0, encodeQedHeader(qed), 0, 64, 'header-update');
      storage.sync('flush-header');
    }
    if (!qed.dirty) return;
    // The last writer did not close the image. Entries that point nowhere would be handed out again by appending.
    const result = checkQed(qed, storage, 'all');
    if (result.checkErrors > 0 || result.corruptions > 0) {
      throw new BlockError(
        'CORRUPT_IMAGE',
        `Cannot open QED image "${storage.path}" for writing: it was not closed cleanly and ${result.corruptions + result.checkErrors} errors could not be repaired; run "imagefs check -r all"`,
        { path: storage.path },
      );
    }
    qed.dirty = readQedHeader(storage).dirty;
  },

  attach: (header, storage, state, cache, imageId) => new QedDriver(asQed(header), storage, state, cache, imageId),
  create: createQed,
  createOptions: CREATE_OPTIONS,
  check: (header, storage, repair) => checkQed(asQed(header), storage, repair),
};

function asQed(header: ImageHeader): QedHeader {
  return header as QedHeader;
}
